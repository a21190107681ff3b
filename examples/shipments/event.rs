//! What carriers say, and what it is called among the events.

use std::fmt;

use serde::{Deserialize, Serialize};
use stepwell::Timestamp;

/// Something that happened to a shipment: a line of a file of events.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CarrierEvent {
    pub(crate) tracking: Text,
    pub(crate) what: What,
    pub(crate) place: Text,
    pub(crate) at: Timestamp,
}

impl CarrierEvent {
    /// The event's name. Each of them happens to a shipment once.
    pub(crate) fn name(&self) -> String {
        name(self.what, &self.tracking)
    }
}

/// The name of the event that this happened to the shipment.
pub(crate) fn name(what: What, tracking: &Text) -> String {
    format!("{what}:{tracking}")
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Packed,
    PickedUp,
    Delivered,
    Lost,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packed => "packed",
            Self::PickedUp => "picked_up",
            Self::Delivered => "delivered",
            Self::Lost => "lost",
        })
    }
}

/// A text that is fit for names and terminals: 1 to 100 printable characters.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = !text.is_empty() && text.len() <= 100 && !text.contains(char::is_control);
        if fits {
            Ok(Self(text))
        } else {
            Err("each text has to have 1 to 100 printable characters")
        }
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
