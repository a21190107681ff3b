//! The kinds of operations.

use serde::{Deserialize, Serialize};

/// The kind of an operation, and of its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The result of a step, or its failure.
    Step,
    /// The end of a sleep.
    Timer,
    /// The end of a [`timeout`](crate::TaskContext::timeout) that passed.
    Timeout,
    /// The end of the delay between two tries of a step.
    Backoff,
    /// An event, or the end of the time to wait for it.
    Event,
    /// A message, or the end of the time to wait for it.
    Message,
    /// The result or the failure of a child.
    Child,
    /// A value of `now`, `uuid` or `random`.
    Value,
    /// The spawn of a child.
    Spawn,
    /// The emission of an event.
    Emit,
    /// The sending of a message.
    Send,
    /// The request for an approval, or its escalation.
    Approval,
    /// The failure of an attempt, or the retry of a task that had been compensated; it is not a
    /// delivery.
    Attempt,
    /// A line of the task's log, whose ordinal is the number of the attempt; it is not a delivery.
    Log,
    /// The progress of the task, in the place of an earlier such entry; it is not a delivery.
    Progress,
    /// A chunk of an [`ItemProgress`](crate::ItemProgress): the results of some of many items; it
    /// is not a delivery.
    Items,
    /// A mark that the task runs code that was [`patched`](crate::TaskContext::patched), from its
    /// start or from here on; it is not a delivery.
    Patch,
    /// A mark that the input of a step has changed, so that the outcomes from the entry with the
    /// given number on are kept by name; it is not a delivery.
    Changed,
    /// The record of a compensation: of the step with this name and number, or of a cleanup with
    /// this name.
    Compensate,
    /// A mark that the task is compensated from here on; it is not a delivery.
    Compensating,
    /// The end of a compensation, or a mark that it is no longer needed.
    Compensated,
}

impl Kind {
    /// The list of all kinds.
    pub const ALL: [Self; 21] = [
        Self::Step,
        Self::Timer,
        Self::Timeout,
        Self::Backoff,
        Self::Event,
        Self::Message,
        Self::Child,
        Self::Value,
        Self::Spawn,
        Self::Emit,
        Self::Send,
        Self::Approval,
        Self::Attempt,
        Self::Log,
        Self::Progress,
        Self::Items,
        Self::Patch,
        Self::Changed,
        Self::Compensate,
        Self::Compensating,
        Self::Compensated,
    ];

    /// Returns the word for the kind in stores and exports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Timer => "timer",
            Self::Timeout => "timeout",
            Self::Backoff => "backoff",
            Self::Event => "event",
            Self::Message => "message",
            Self::Child => "child",
            Self::Value => "value",
            Self::Spawn => "spawn",
            Self::Emit => "emit",
            Self::Send => "send",
            Self::Approval => "approval",
            Self::Attempt => "attempt",
            Self::Log => "log",
            Self::Progress => "progress",
            Self::Items => "items",
            Self::Patch => "patch",
            Self::Changed => "changed",
            Self::Compensate => "compensate",
            Self::Compensating => "compensating",
            Self::Compensated => "compensated",
        }
    }

    /// Returns whether such an entry shows that a run got further, which a log line and a progress
    /// report do not.
    pub const fn is_progress(self) -> bool {
        !matches!(self, Self::Log | Self::Progress)
    }

    /// Returns whether the value of an entry is the application's own, and not a document of the
    /// engine.
    pub(crate) const fn is_of_application(self) -> bool {
        matches!(self, Self::Step | Self::Event | Self::Message | Self::Child)
    }

    /// Returns the kind with this word; `None` when there is none.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}
