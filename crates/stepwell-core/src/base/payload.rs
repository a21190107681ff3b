//! Payloads: JSON values that users give, as text.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::codec_error::CodecError;
use crate::base::strict;

/// A value as JSON text: parameters, results, events, messages.
///
/// A payload is cheap to clone. A payload of the store that could not be decoded
/// ([`Payload::unreadable`]) is shown as `{"$unreadable":"…why…"}`, and [`Payload::decode`] returns
/// the reason as an error.
#[derive(Clone)]
pub struct Payload(Text);

#[derive(Clone)]
enum Text {
    Json(Arc<str>),
    Unreadable(Arc<Unreadable>),
}

struct Unreadable {
    /// The text that the store holds.
    kept: Payload,
    /// The JSON that lists and exports show.
    shown: String,
    error: PayloadError,
}

/// The error of a value that could not become a payload, or of a payload that could not become a
/// value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PayloadError {
    /// The value does not serialise to JSON.
    #[error("the value of type `{type_name}` does not serialise to JSON: {reason}")]
    Encode {
        /// The Rust type.
        type_name: &'static str,
        /// The message of serde.
        reason: String,
    },
    /// The JSON does not fit the requested type.
    #[error(
        "the JSON does not fit the type `{type_name}`: {reason}; it begins {start:?}. If the type \
         has changed, keep it readable (`#[serde(default)]`, an enum of versions)"
    )]
    Decode {
        /// The Rust type.
        type_name: &'static str,
        /// The message of serde.
        reason: String,
        /// The first 64 characters of the JSON.
        start: String,
    },
    /// The JSON does not fit the schema of its task type.
    #[error("does not fit its schema: {reason}")]
    Schema {
        /// The violations of the schema, and where they are.
        reason: String,
    },
    /// The JSON of the value is not read back by its type, or not as the same value.
    #[error(
        "the value of type `{type_name}` could not be read back from its JSON: {reason}. What \
         `Serialize` writes, `Deserialize` has to read: within tagged, untagged and flattened \
         types it reads neither integers of 128 bits nor keys that are numbers (keep them as \
         text), and what is skipped needs a default"
    )]
    NotReadBack {
        /// The Rust type.
        type_name: &'static str,
        /// The reason why the value is not read back.
        reason: String,
    },
    /// The JSON is longer than the limit.
    #[error(
        "the payload of type `{type_name}` has {bytes} bytes, the limit is {limit}: keep large \
         data elsewhere and journal a reference, or raise the limit with `max_payload_bytes`"
    )]
    TooLarge {
        /// The Rust type.
        type_name: &'static str,
        /// The length of the JSON, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The text that the store holds could not be decoded.
    #[error("{what} cannot be read: {reason}")]
    Unreadable {
        /// The place of the payload.
        what: String,
        /// The error of the codec.
        reason: CodecError,
    },
}

impl Payload {
    /// The default limit of a payload's length: 4 MiB.
    pub const DEFAULT_LIMIT: usize = 4 << 20;

    /// Returns the JSON `null`.
    pub fn null() -> Self {
        Self::from_json("null")
    }

    /// The deepest nesting of lists and objects in a payload: 100 levels.
    pub const MAX_DEPTH: usize = strict::MAX_DEPTH;

    /// Serialises the value.
    ///
    /// # Errors
    /// - [`PayloadError::Encode`] when the value does not serialise, when it is nested deeper than
    ///   [`Payload::MAX_DEPTH`], or when JSON would not return it as it is. The latter are NaN and
    ///   infinities, and a `Some` of something that is `null` in JSON, such as `Some(())`. This
    ///   call does not know whether a type reads what it writes: see [`Payload::encode_proven`].
    /// - [`PayloadError::TooLarge`] when the JSON is longer than `limit` bytes.
    pub fn encode<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Self, PayloadError> {
        Self::encode_noting(value, limit, &Cell::default())
    }

    /// Serialises a value that will be read as the same type, and proves that it can be by reading
    /// it.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stepwell_core::{Payload, PayloadError};
    /// #[derive(Serialize, Deserialize)]
    /// #[serde(tag = "type")]
    /// enum Entry {
    ///     Credit { cents: u128 },
    /// }
    ///
    /// // serde reads no integers of 128 bits within an enum that is tagged so.
    /// let entry = Entry::Credit { cents: 5 };
    /// let error = Payload::encode_proven(&entry, Payload::DEFAULT_LIMIT).unwrap_err();
    /// assert!(matches!(error, PayloadError::NotReadBack { .. }));
    /// ```
    ///
    /// # Errors
    /// The errors of [`Payload::encode`], and [`PayloadError::NotReadBack`].
    pub fn encode_proven<T: Serialize + DeserializeOwned>(
        value: &T,
        limit: usize,
    ) -> Result<Self, PayloadError> {
        Self::encode_and_read(value, limit).map(|(payload, _)| payload)
    }

    /// Serialises the value as [`Payload::encode_proven`] does, and returns the value that was read
    /// as well.
    pub(crate) fn encode_and_read<T: Serialize + DeserializeOwned>(
        value: &T,
        limit: usize,
    ) -> Result<(Self, T), PayloadError> {
        let wide = Cell::default();
        let payload = Self::encode_noting(value, limit, &wide)?;
        let refused =
            |reason| PayloadError::NotReadBack { type_name: std::any::type_name::<T>(), reason };
        let read: T =
            serde_json::from_str(payload.as_str()).map_err(|error| refused(error.to_string()))?;
        // When an integer of 128 bits is buffered, another variant of an untagged enum may have
        // taken it.
        if wide.get()
            && bytes_of(Self::encode(&read, usize::MAX)?.as_str()) != bytes_of(payload.as_str())
        {
            return Err(refused("its integers of 128 bits are read as something else".into()));
        }
        Ok((payload, read))
    }

    fn encode_noting<T: Serialize + ?Sized>(
        value: &T,
        limit: usize,
        wide: &Cell<bool>,
    ) -> Result<Self, PayloadError> {
        let type_name = std::any::type_name::<T>();
        let json = strict::to_json_noting(value, wide)
            .map_err(|error| PayloadError::Encode { type_name, reason: error.to_string() })?;
        if json.len() > limit {
            return Err(PayloadError::TooLarge { type_name, bytes: json.len(), limit });
        }
        Ok(Self::from_json(json))
    }

    /// Serialises a document of Stepwell, which may hold payloads of any depth.
    ///
    /// # Errors
    /// [`PayloadError::Encode`] when the document does not serialise.
    #[doc(hidden)]
    pub fn document<T: Serialize + ?Sized>(document: &T) -> Result<Self, PayloadError> {
        let type_name = std::any::type_name::<T>();
        let json = serde_json::to_string(document);
        json.map(Self::from_json)
            .map_err(|error| PayloadError::Encode { type_name, reason: error.to_string() })
    }

    /// Checks text that came from outside the program.
    ///
    /// # Errors
    /// - [`PayloadError::Encode`] when the text is not JSON, is nested over `depth` levels deep, or
    ///   holds half of a character.
    /// - [`PayloadError::TooLarge`] when the text is longer than `limit` bytes.
    pub(crate) fn check(&self, depth: usize, limit: usize) -> Result<(), PayloadError> {
        let (type_name, bytes) = (std::any::type_name::<Self>(), self.as_str().len());
        let refused = |reason| PayloadError::Encode { type_name, reason };
        if bytes > limit {
            return Err(PayloadError::TooLarge { type_name, bytes, limit });
        }
        if strict::depth(self.as_str()) > depth {
            return Err(refused(format!("it is nested over {depth} levels deep")));
        }
        if !strict::is_whole(self.as_str()) {
            return Err(refused(strict::HALF_A_CHARACTER.into()));
        }
        let json = serde_json::from_str::<&serde_json::value::RawValue>(self.as_str());
        json.map(drop).map_err(|error| refused(error.to_string()))
    }

    /// Deserialises the value.
    ///
    /// # Errors
    /// The JSON does not fit the type, or the payload is [unreadable](Payload::unreadable).
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        if let Some(error) = self.unreadable() {
            return Err(error.clone());
        }
        serde_json::from_str(self.as_str()).map_err(|error| PayloadError::Decode {
            type_name: std::any::type_name::<T>(),
            reason: error.to_string(),
            start: self.as_str().chars().take(64).collect(),
        })
    }

    /// Returns the reason why the text in the store could not be decoded; `None` when it could.
    pub fn unreadable(&self) -> Option<&PayloadError> {
        match &self.0 {
            Text::Json(_) => None,
            Text::Unreadable(unreadable) => Some(&unreadable.error),
        }
    }

    /// Returns the payload that stands for text in the store that could not be decoded.
    pub(crate) fn not_readable(kept: Self, what: String, reason: CodecError) -> Self {
        let error = PayloadError::Unreadable { what, reason };
        let shown = serde_json::json!({ "$unreadable": error.to_string() }).to_string();
        Self(Text::Unreadable(Arc::new(Unreadable { kept, shown, error })))
    }

    /// Returns the payload that stands for a column that is empty and should not be.
    pub fn missing(what: &str) -> Self {
        let reason = "the column is empty: correct that column of the task's row".to_owned();
        Self::not_readable(Self::null(), what.to_owned(), CodecError::Damaged(reason))
    }

    /// Returns the text in the store of a payload that could not be decoded.
    pub(crate) fn kept(&self) -> Option<&Self> {
        match &self.0 {
            Text::Json(_) => None,
            Text::Unreadable(unreadable) => Some(&unreadable.kept),
        }
    }

    /// Returns the payload that a store's column holds, for lists; text that is not JSON becomes an
    /// unreadable payload.
    pub fn stored(text: &str, what: &str) -> Self {
        let payload = Self::from_json(text);
        match serde_json::from_str::<&serde_json::value::RawValue>(text) {
            Ok(_) => payload,
            Err(error) => {
                Self::not_readable(payload, what.to_owned(), CodecError::Damaged(error.to_string()))
            }
        }
    }

    /// Returns a payload of text that is known to be JSON, such as a store's own column.
    pub fn from_json(json: impl Into<Arc<str>>) -> Self {
        Self(Text::Json(json.into()))
    }

    /// Returns the JSON text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Json(json) => json,
            Text::Unreadable(unreadable) => &unreadable.shown,
        }
    }
}

/// Counts how often each byte occurs in the text, because the JSON of maps and sets has no fixed
/// order.
fn bytes_of(json: &str) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    json.bytes().for_each(|byte| *counts.entry(byte).or_default() += 1);
    counts
}

/// The JSON `null`.
impl Default for Payload {
    fn default() -> Self {
        Self::null()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: &serde_json::value::RawValue =
            serde_json::from_str(self.as_str()).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        if !strict::is_whole(value.get()) {
            return Err(serde::de::Error::custom(strict::HALF_A_CHARACTER));
        }
        Ok(Self::from_json(strict::one_line(value.get())))
    }
}

/// A schema that accepts any JSON.
#[cfg(feature = "schemas")]
impl schemars::JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_why_it_cannot_be() {
        let unserialisable = std::collections::HashMap::from([(vec![1], 2)]);
        let error = Payload::encode(&unserialisable, 100).unwrap_err();
        assert!(
            error.to_string().contains("does not serialise to JSON: key must be a string"),
            "{error}"
        );
        let error = Payload::encode("0123456789", 5).unwrap_err();
        assert!(
            error.to_string().contains("has 12 bytes, the limit is 5: keep large data elsewhere"),
            "{error}"
        );
        let error = Payload::encode("text", 100).unwrap().decode::<u32>().unwrap_err();
        assert!(error.to_string().contains("does not fit the type `u32`"), "{error}");
    }
}
