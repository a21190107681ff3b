//! Hashes of inputs: the same value has the same hash, in every version and on every platform.
//!
//! The value is serialised to JSON, and the JSON is brought into one form:
//!
//! - There are no spaces.
//! - The keys of each object are in the order of their bytes (in UTF-8).
//! - Strings have no more escapes than JSON demands.
//! - Integers are written in decimal.
//! - Floats have an exponent and the fewest digits that read back as the same float (`1e0`,
//!   `-1.5e-7`).
//!
//! So `1` and `1.0` are two inputs. The hash is the first 16 bytes of the SHA-256 of that text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::payload::PayloadError;
use crate::base::strict;

/// A stable hash of a value: 16 bytes, shown as 32 lowercase hex digits.
///
/// ```
/// # use std::collections::HashMap;
/// # use stepwell_core::InputHash;
/// let a = InputHash::of(&HashMap::from([("rows", 2), ("file", 1)]))?;
/// let b = InputHash::of(&serde_json::json!({ "file": 1, "rows": 2 }))?;
/// assert_eq!(a, b);
/// assert_eq!(a.to_string(), "3e19f0b7745ad7a8267294edfaf9ba05");
/// # Ok::<_, stepwell_core::PayloadError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InputHash([u8; Self::BYTES]);

/// The error of a text that is not an [`InputHash`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hash of an input: it has to be 32 lowercase hex digits")]
pub struct InvalidInputHash(String);

impl InputHash {
    /// The number of bytes of the SHA-256 that are kept, with which two inputs never share a hash
    /// by chance.
    pub const BYTES: usize = 16;

    /// Returns the hash of the value.
    ///
    /// # Errors
    /// [`PayloadError::Encode`] when the value could not be a [`Payload`](crate::Payload).
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, PayloadError> {
        let failed =
            |reason: String| PayloadError::Encode { type_name: std::any::type_name::<T>(), reason };
        // The hash is made from text, not from `serde_json::Value`. The numbers of a `Value` depend
        // on features of serde_json that any crate of a program can switch on.
        let json = strict::to_json(value).map_err(|error| failed(error.to_string()))?;
        Self::of_json(&json).ok_or_else(|| failed("its JSON is not valid".into()))
    }

    /// Returns the hash of JSON text, however deep; `None` when the text is not JSON.
    pub(crate) fn of_json(json: &str) -> Option<Self> {
        let digest: [u8; 32] = Sha256::digest(canonical(json)?.as_bytes()).into();
        digest.first_chunk().copied().map(Self)
    }
}

/// A list or object whose end has not been reached.
struct Open {
    /// The place in the canonical text where the members begin.
    begin: usize,
    /// The keys of an object, and the places where its members begin.
    keys: Option<Vec<(String, usize)>>,
}

/// Returns the text in its canonical form; `None` when the text is not JSON.
///
/// The function takes no stack. Its time is proportional to the text, once for each level of
/// objects whose keys are out of order.
fn canonical(json: &str) -> Option<String> {
    let mut out = String::with_capacity(json.len());
    let mut open: Vec<Open> = Vec::new();
    let mut rest = json;
    loop {
        rest = rest.trim_ascii_start();
        let Some(&first) = rest.as_bytes().first() else { break };
        let length = match first {
            b'{' | b'[' => {
                out.push(char::from(first));
                open.push(Open { begin: out.len(), keys: (first == b'{').then(Vec::new) });
                1
            }
            b'}' | b']' => {
                close(&mut out, open.pop()?);
                out.push(char::from(first));
                1
            }
            b',' => 1,
            b'"' => text_length(rest)?,
            _ => rest.find([',', ']', '}', ' ', '\n', '\r', '\t']).unwrap_or(rest.len()),
        };
        let (token, behind) = rest.split_at_checked(length)?;
        rest = behind;
        match first {
            // The value of this token is still to come.
            b'{' | b'[' | b',' => continue,
            b'}' | b']' => {}
            b'"' => {
                // JSON that was text before, such as a `Payload`, may have needless escapes.
                let text: String = serde_json::from_str(token).ok()?;
                let key = rest.trim_ascii_start().strip_prefix(':');
                if let (Some(behind), Some(Open { keys: Some(keys), .. })) = (key, open.last_mut())
                {
                    let begin = out.len();
                    out.push_str(&serde_json::to_string(&text).ok()?);
                    out.push(':');
                    keys.push((text, begin));
                    rest = behind;
                    continue;
                }
                out.push_str(&serde_json::to_string(&text).ok()?);
            }
            // Versions of serde_json write floats in different ways.
            _ => match token.parse::<f64>() {
                Ok(float) if token.contains(['.', 'e', 'E']) => write!(out, "{float:e}").ok()?,
                _ => out.push_str(token),
            },
        }
        if !open.is_empty() {
            out.push(',');
        }
    }
    open.is_empty().then_some(out)
}

/// Removes the comma after the last member, and sorts the members of an object by their keys.
///
/// Of two members with the same key, the last one counts.
fn close(out: &mut String, Open { begin, keys }: Open) {
    let keys = keys.unwrap_or_default();
    if !keys.is_sorted_by(|(one, _), (next, _)| one < next) {
        let members = out.split_off(begin);
        let ends = keys.iter().skip(1).map(|(_, end)| end - begin).chain([members.len()]);
        let sorted: BTreeMap<_, _> = keys
            .iter()
            .zip(ends)
            .map(|((key, at), end)| (key, &members[at - begin..end]))
            .collect();
        out.extend(sorted.into_values());
    }
    if out.len() > begin {
        out.pop();
    }
}

/// Returns the length in bytes of the string literal that begins here, with its quotes.
fn text_length(json: &str) -> Option<usize> {
    let mut escaped = false;
    let end = json.bytes().skip(1).position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    });
    end.map(|end| end + 2)
}

impl fmt::Display for InputHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InputHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InputHash {
    type Err = InvalidInputHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
        let bytes = bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty());
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| InvalidInputHash(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for InputHash {
    type Error = InvalidInputHash;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InputHash> for String {
    fn from(hash: InputHash) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::base::payload::Payload;

    fn hash<T: Serialize + ?Sized>(value: &T) -> String {
        InputHash::of(value).unwrap().to_string()
    }

    #[derive(Serialize)]
    struct Row<'a> {
        b: Option<i64>,
        a: (&'a str, f32),
        é: Vec<u8>,
    }

    /// Each hash is the result of `printf %s 'the text' | sha256sum`, cut to 32 digits.
    #[test]
    fn a_hash_is_the_sha_256_of_the_canonical_json() {
        assert_eq!(hash(&()), "74234e98afe7498fb5daf1f36ac2d78a"); // null
        assert_eq!(hash("file-123"), "abe1ce28d8cfe5840867e0df9037af0f"); // "file-123"
        // "tab\t quote\" ä 📦 /"
        assert_eq!(hash("tab\t quote\" ä 📦 /"), "b7e340cdcd21818d408a4233d7e7080d");
        // [1e0,1e-1,-0e0,1e16,1.5e300]
        let floats = [1.0, 0.1, -0.0, 1e16, 1.5e300];
        assert_eq!(hash(&floats), "b2ece315706495a56eb88461a8c0f7f9");
        // [18446744073709551615,-9223372036854775808,340282366920938463463374607431768211455,
        // true,null]
        assert_eq!(
            hash(&(u64::MAX, i64::MIN, u128::MAX, true, None::<u8>)),
            "832d7682e018aeadf0569ab4f4a1e733"
        );
        assert_eq!(
            hash(&Row { b: None, a: ("x", 0.1), é: vec![0, 255] }),
            "207f1dc90e16a7ff718fee8f2facb87f"
        ); // {"a":["x",1e-1],"b":null,"é":[0,255]}
        assert_eq!(
            hash(&json!({ "z": {}, "é": [], "Z": { "b": 1, "a": [{ "d": 1, "c": 2 }] } })),
            "1497f713e30f3f36221fedf7dd48f483"
        ); // {"Z":{"a":[{"c":2,"d":1}],"b":1},"z":{},"é":[]}
    }

    #[test]
    fn neither_the_order_of_keys_nor_spaces_nor_escapes_matter() {
        let expected = hash(&BTreeMap::from([("file", "ä"), ("rows", "/")]));
        for _ in 0..20 {
            // Every `HashMap` has its own order.
            assert_eq!(hash(&HashMap::from([("rows", "/"), ("file", "ä")])), expected);
        }
        let text = Payload::from_json(r#" { "rows" : "\/", "file" : "\u00e4" } "#.trim());
        assert_eq!(hash(&text), expected);
    }

    #[test]
    fn a_hash_survives_its_text() {
        let hash = InputHash::of("x").unwrap();
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(
            serde_json::from_str::<InputHash>(&serde_json::to_string(&hash).unwrap()).unwrap(),
            hash
        );
        for text in ["", "00", &"0".repeat(31), &"0".repeat(33), &"A".repeat(32), &"é".repeat(16)]
        {
            assert!(text.parse::<InputHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_serialise_has_no_hash() {
        let error = InputHash::of(&HashMap::from([(vec![1], 2)])).unwrap_err();
        assert!(
            error.to_string().contains("does not serialise to JSON: key must be a string"),
            "{error}"
        );
    }

    #[test]
    fn the_canonical_form_takes_no_stack() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(canonical(&deep) == Some(deep));
        assert_eq!(canonical("[[1]"), None);
        assert_eq!(canonical("[1]]"), None);
        assert_eq!(canonical("\"a"), None);
    }

    /// A pattern of JSON values of each kind, with blanks and escapes.
    const VALUE: &str = r#"1|-2\.50|"a\\u00e4"|\[ \]|\[1 , "]"\]|\{"b":1, "a" :2\}|null"#;

    proptest! {
        #[test]
        fn the_canonical_form_is_what_a_map_makes_of_it(
            keys in proptest::collection::vec("[a-dä\"\\\\]{0,2}", 0..6),
            values in proptest::collection::vec(VALUE, 6),
        ) {
            let members = keys.iter().zip(&values);
            let members = members.map(|(key, value)| format!("{} : {value}", json!(key)));
            let text = format!("{{ {} }}", members.collect::<Vec<_>>().join(" , "));
            let canonical = canonical(&text).unwrap();
            let map: BTreeMap<String, Payload> = serde_json::from_str(&text).unwrap();
            let part = |(key, value): (&String, &Payload)| {
                format!("{}:{}", json!(key), super::canonical(value.as_str()).unwrap())
            };
            let inner = map.iter().map(part);
            prop_assert_eq!(&canonical, &format!("{{{}}}", inner.collect::<Vec<_>>().join(",")));
            prop_assert_eq!(super::canonical(&canonical).unwrap(), canonical);
        }
    }
}
