//! File names as text: readable, on one line, and never two names as the same text.
//!
//! A task's parameters are JSON and a journal is for people, but a file's name may be any bytes. So
//! names are kept escaped: `\` as `\\`, a control character as `\u{a}`, a byte that is no UTF-8 as
//! `\xff`; all else as it is.

use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

/// The path as text, its components joined with `/`.
pub(crate) fn escape(path: &Path) -> String {
    let mut text = String::new();
    for component in path.components() {
        match component {
            Component::RootDir => text.push('/'),
            Component::Prefix(prefix) => {
                escape_bytes(prefix.as_os_str().as_encoded_bytes(), &mut text);
            }
            component => {
                if !text.is_empty() && !text.ends_with('/') {
                    text.push('/');
                }
                escape_bytes(component.as_os_str().as_encoded_bytes(), &mut text);
            }
        }
    }
    text
}

fn escape_bytes(bytes: &[u8], text: &mut String) {
    // Writing to a string does not fail.
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => _ = write!(text, "\\u{{{:x}}}", u32::from(c)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

/// The path of such a text.
///
/// # Errors
/// When the text was not made by [`escape`], or names what this system cannot have.
pub(crate) fn unescape(text: &str) -> anyhow::Result<PathBuf> {
    let bytes =
        unescape_bytes(text).with_context(|| format!("\"{text}\" is no escaped file name"))?;
    from_bytes(bytes)
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> anyhow::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn from_bytes(bytes: Vec<u8>) -> anyhow::Result<PathBuf> {
    Ok(String::from_utf8(bytes)
        .context("the file's name is not Unicode, which this system cannot have")?
        .into())
}

fn unescape_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        rest = if let Some(rest) = escaped.strip_prefix('\\') {
            bytes.push(b'\\');
            rest
        } else if let Some(escaped) = escaped.strip_prefix('x') {
            bytes.push(u8::from_str_radix(escaped.get(..2)?, 16).ok()?);
            &escaped[2..]
        } else {
            let (code, rest) = escaped.strip_prefix("u{")?.split_once('}')?;
            let c = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn every_name_comes_back_and_shows_no_control_character() {
        for name in [
            &b"a/b.txt"[..],
            b"/root",
            b"new\nline\r\x1b[1m",
            b"\xff\xfe caf\xc3\xa9",
            b"back\\slash \\xff",
            "\u{85}".as_bytes(),
        ] {
            let path = Path::new(OsStr::from_bytes(name));
            let text = escape(path);
            assert!(!text.contains(char::is_control), "{text}");
            assert_eq!(unescape(&text).unwrap(), path);
        }
        assert_eq!(escape(Path::new(OsStr::from_bytes(b"a\n\xff\\"))), "a\\u{a}\\xff\\\\");
        assert!(unescape("\\q").is_err());
    }
}
