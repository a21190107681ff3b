//! Hashes of inputs: the same value has the same hash, in every version and on every platform.
//!
//! The value is serialised to JSON, which is brought into one form: no spaces, the keys of each object in the order of
//! their bytes (in UTF-8), strings with no more escapes than JSON demands. Integers are written in decimal, floats with an
//! exponent and the fewest digits that read back as the same float (`1e0`, `-1.5e-7`), infinities and NaN as `null`. So `1`
//! and `1.0` are two inputs. The hash is the first 16 bytes of the SHA-256 of that text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Error;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::payload::PayloadError;

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

/// A text that is no [`InputHash`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hash of an input: it has to be 32 lowercase hex digits")]
pub struct InvalidInputHash(String);

impl InputHash {
    /// How many bytes of the SHA-256 are kept: enough that two inputs never share a hash by chance.
    pub const BYTES: usize = 16;

    /// The hash of the value.
    ///
    /// # Errors
    /// [`PayloadError::Encode`] when the value does not serialise to JSON.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, PayloadError> {
        let failed = |error: Error| PayloadError::Encode {
            type_name: std::any::type_name::<T>(),
            reason: error.to_string(),
        };
        // By way of text, not of `serde_json::Value`: what that makes of numbers depends on features of serde_json that any
        // crate of a program can switch on.
        let json = serde_json::to_string(value).map_err(failed)?;
        let mut canonical = String::with_capacity(json.len());
        write_canonical(&json, &mut canonical).map_err(failed)?;
        let digest: [u8; 32] = Sha256::digest(canonical.as_bytes()).into();
        let mut bytes = [0; Self::BYTES];
        bytes.copy_from_slice(&digest[..Self::BYTES]);
        Ok(Self(bytes))
    }
}

fn write_canonical(json: &str, out: &mut String) -> Result<(), Error> {
    match json.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
            out.push('{');
            for (i, (key, value)) in members.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                out.push_str(&serde_json::to_string(&key)?);
                out.push(':');
                write_canonical(value.get(), out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(json)?;
            out.push('[');
            for (i, value) in elements.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                write_canonical(value.get(), out)?;
            }
            out.push(']');
        }
        // JSON that was text before, such as a `Payload`, may have escapes that are not needed.
        Some(b'"') => out.push_str(&serde_json::to_string(&serde_json::from_str::<String>(json)?)?),
        // Versions of serde_json differ in how they write floats.
        _ => match json.parse::<f64>() {
            Ok(float) if json.contains(['.', 'e', 'E']) => write!(out, "{float:e}").map_err(Error::custom)?,
            _ => out.push_str(json),
        },
    }
    Ok(())
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

    use serde_json::json;

    use super::*;
    use crate::payload::Payload;

    fn hash<T: Serialize + ?Sized>(value: &T) -> String {
        InputHash::of(value).unwrap().to_string()
    }

    #[derive(Serialize)]
    struct Row<'a> {
        b: Option<i64>,
        a: (&'a str, f32),
        é: Vec<u8>,
    }

    /// Each with the hash that `printf %s 'the text' | sha256sum` gives, cut to 32 digits.
    #[test]
    fn a_hash_is_the_sha_256_of_the_canonical_json() {
        assert_eq!(hash(&()), "74234e98afe7498fb5daf1f36ac2d78a"); // null
        assert_eq!(hash("file-123"), "abe1ce28d8cfe5840867e0df9037af0f"); // "file-123"
        assert_eq!(hash("tab\t quote\" ä 📦 /"), "b7e340cdcd21818d408a4233d7e7080d"); // "tab\t quote\" ä 📦 /"
        assert_eq!(hash(&[1.0, 0.1, -0.0, 1e16, 1.5e300]), "b2ece315706495a56eb88461a8c0f7f9"); // [1e0,1e-1,-0e0,1e16,1.5e300]
        assert_eq!(
            hash(&(u64::MAX, i64::MIN, u128::MAX, true, f64::NAN)),
            "832d7682e018aeadf0569ab4f4a1e733"
        ); // [18446744073709551615,-9223372036854775808,340282366920938463463374607431768211455,true,null]
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
        assert_eq!(serde_json::from_str::<InputHash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        for text in ["", "00", &"0".repeat(31), &"0".repeat(33), &"A".repeat(32), &"é".repeat(16)] {
            assert!(text.parse::<InputHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_serialise_has_no_hash() {
        let error = InputHash::of(&HashMap::from([(vec![1], 2)])).unwrap_err();
        assert!(error.to_string().contains("does not serialise to JSON: key must be a string"), "{error}");
    }
}
