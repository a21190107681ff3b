//! Names of task types, queues, steps, events and topics.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The maximum length of a name in a store, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// The maximum length of the name of a step, event, message, child or approval of a task, in bytes.
///
/// The remaining bytes up to [`MAX_NAME_BYTES`] are for the engine's additions: a number, the hash
/// of an input, the id of a child or a task.
pub const MAX_STEP_NAME_BYTES: usize = 384;

/// A valid name: 1 to 512 bytes of Unicode text without NUL, which PostgreSQL cannot keep.
///
/// A name is cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schemas",
    schemars(extend("minLength" = 1, "maxLength" = 512)),
    schemars(extend("pattern" = "^[^\\u0000]*$"))
)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// The error of a text that is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("a name must not be empty: give it 1 to {MAX_NAME_BYTES} bytes")]
    Empty,
    /// The text is over [`MAX_NAME_BYTES`], or over [`MAX_STEP_NAME_BYTES`] where that is the
    /// limit.
    #[error(
        "the name {start:?}… has {bytes} bytes, the limit is {limit}: use a shorter one, or a hash \
         of it"
    )]
    TooLong {
        /// The first 32 characters of the text.
        start: String,
        /// The length of the text, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The text holds a NUL character.
    #[error("the name {0:?} holds a NUL character, which databases cannot keep: remove it")]
    Nul(String),
}

impl Name {
    /// Checks the text, and returns it as a name.
    ///
    /// # Errors
    /// The text is empty, too long, or holds a NUL character.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        Self::within(MAX_NAME_BYTES, text.as_ref())
    }

    /// Checks the name of an event or a topic, for which a task must be able to wait.
    pub(crate) fn awaitable(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        Self::within(MAX_STEP_NAME_BYTES, text.as_ref())
    }

    fn within(limit: usize, text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            Err(InvalidName::Empty)
        } else if text.len() > limit {
            Err(InvalidName::TooLong {
                start: text.chars().take(32).collect(),
                bytes: text.len(),
                limit,
            })
        } else if text.contains('\0') {
            Err(InvalidName::Nul(text.chars().take(32).collect()))
        } else {
            Ok(Self(text.into()))
        }
    }

    /// Returns whether the text is a name.
    pub(crate) fn is_valid(text: &str) -> bool {
        (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.contains('\0')
    }

    /// Returns a name of the engine's own, which is valid.
    pub(crate) fn known(text: &'static str) -> Self {
        Self(text.into())
    }

    /// Returns the text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of a step, as a call of the context accepts it: a string, or a string and a
/// discriminator.
///
/// ```
/// # use stepwell_core::StepName;
/// let names: [StepName; 2] = ["charge".into(), ("fetch", 7).into()];
/// assert_eq!(names[1].to_string(), "fetch:7");
/// ```
///
/// A step name has at most [`MAX_STEP_NAME_BYTES`] bytes in all.
#[derive(Clone, Debug)]
pub struct StepName {
    text: String,
    /// The limit, in bytes.
    limit: usize,
}

impl StepName {
    /// Returns a name that the engine derives from a checked name.
    pub(crate) fn derived(text: String) -> Self {
        Self { text, limit: MAX_NAME_BYTES }
    }

    pub(crate) fn check(&self) -> Result<Name, InvalidName> {
        Name::within(self.limit, &self.text)
    }
}

impl From<&str> for StepName {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl From<&String> for StepName {
    fn from(name: &String) -> Self {
        name.clone().into()
    }
}

impl From<String> for StepName {
    fn from(text: String) -> Self {
        Self { text, limit: MAX_STEP_NAME_BYTES }
    }
}

impl<D: fmt::Display> From<(&str, D)> for StepName {
    fn from((name, discriminator): (&str, D)) -> Self {
        format!("{name}:{discriminator}").into()
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_text_without_nul() {
        assert!(Name::new("päckchen 📦 'quoted' \"name\"; DROP TABLE tasks;--").is_ok());
        assert!(Name::new("x".repeat(MAX_NAME_BYTES)).is_ok());
        assert_eq!(Name::new(""), Err(InvalidName::Empty));
        assert!(matches!(Name::new("x".repeat(513)), Err(InvalidName::TooLong { bytes: 513, .. })));
        assert!(matches!(Name::new("a\0b"), Err(InvalidName::Nul(_))));
    }
}
