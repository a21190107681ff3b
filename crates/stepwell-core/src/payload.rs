//! Payloads: values of the user's types, as JSON text.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value as JSON text: parameters, results, events, messages. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Arc<str>);

/// Why a value could not become a payload, or a payload a value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PayloadError {
    /// The value does not serialise to JSON.
    #[error("the value of type `{type_name}` does not serialise to JSON: {reason}")]
    Encode {
        /// The Rust type.
        type_name: &'static str,
        /// What serde said.
        reason: String,
    },
    /// The JSON does not fit the type that was asked for.
    #[error(
        "the JSON does not fit the type `{type_name}`: {reason}; it begins {start:?}. If the type has changed, keep it readable (`#[serde(default)]`, an enum of versions)"
    )]
    Decode {
        /// The Rust type.
        type_name: &'static str,
        /// What serde said.
        reason: String,
        /// How the JSON begins.
        start: String,
    },
    /// The JSON is over the limit.
    #[error(
        "the payload of type `{type_name}` has {bytes} bytes, the limit is {limit}: keep large data elsewhere and journal a reference, or raise the limit with `max_payload_bytes`"
    )]
    TooLarge {
        /// The Rust type.
        type_name: &'static str,
        /// How long the JSON is.
        bytes: usize,
        /// The limit that was set.
        limit: usize,
    },
}

impl Payload {
    /// The default limit of a payload's size: 4 MiB.
    pub const DEFAULT_LIMIT: usize = 4 << 20;

    /// The JSON `null`.
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Serialises the value.
    ///
    /// # Errors
    /// When the value does not serialise, or its JSON is longer than `limit` bytes.
    pub fn encode<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Self, PayloadError> {
        let type_name = std::any::type_name::<T>();
        let json = serde_json::to_string(value)
            .map_err(|error| PayloadError::Encode { type_name, reason: error.to_string() })?;
        if json.len() > limit {
            return Err(PayloadError::TooLarge { type_name, bytes: json.len(), limit });
        }
        Ok(Self(json.into()))
    }

    /// Deserialises the value.
    ///
    /// # Errors
    /// When the JSON does not fit the type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        serde_json::from_str(&self.0).map_err(|error| PayloadError::Decode {
            type_name: std::any::type_name::<T>(),
            reason: error.to_string(),
            start: self.0.chars().take(64).collect(),
        })
    }

    /// Text that is known to be JSON, such as a store's own column.
    pub fn from_json(json: impl Into<Arc<str>>) -> Self {
        Self(json.into())
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: &serde_json::value::RawValue =
            serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        Ok(Self(value.get().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_why_it_cannot_be() {
        let unserialisable = std::collections::HashMap::from([(vec![1], 2)]);
        let error = Payload::encode(&unserialisable, 100).unwrap_err();
        assert!(error.to_string().contains("does not serialise to JSON: key must be a string"), "{error}");
        let error = Payload::encode("0123456789", 5).unwrap_err();
        assert!(
            error.to_string().contains("has 12 bytes, the limit is 5: keep large data elsewhere"),
            "{error}"
        );
        let error = Payload::encode("text", 100).unwrap().decode::<u32>().unwrap_err();
        assert!(error.to_string().contains("does not fit the type `u32`"), "{error}");
    }
}
