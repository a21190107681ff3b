//! The lowest layer: names, ids, times, payloads, failures and journal entries, without knowledge
//! of stores and engines.

pub(crate) mod codec_error;
pub(crate) mod failure;
pub(crate) mod guard;
pub(crate) mod ids;
pub(crate) mod input_hash;
pub(crate) mod invalid_options;
pub(crate) mod journal;
pub(crate) mod kind;
pub(crate) mod name;
pub(crate) mod payload;
pub(crate) mod retry;
pub(crate) mod runtime;
pub(crate) mod strict;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod unreadable;
