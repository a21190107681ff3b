//! The serialisation of a checkpoint's values, and the keys under which they are recorded.

use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{InputHash, Key, Kind, Name, Payload, PayloadError, StepName};

use crate::error::CheckpointError;
use crate::ledger::Ledger;

pub(crate) fn encode<T: Serialize + ?Sized>(
    name: &str,
    value: &T,
) -> Result<Payload, CheckpointError> {
    Payload::encode(value, Payload::DEFAULT_LIMIT).map_err(|source| unfit(name, source))
}

/// Serialises a value as [`encode`] does, and checks that it can be read as the same type.
pub(crate) fn prove<T: Serialize + DeserializeOwned>(
    name: &str,
    value: &T,
) -> Result<Payload, CheckpointError> {
    Payload::encode_proven(value, Payload::DEFAULT_LIMIT).map_err(|source| unfit(name, source))
}

pub(crate) fn decode<T: DeserializeOwned>(
    name: &str,
    payload: &Payload,
) -> Result<T, CheckpointError> {
    payload.decode().map_err(|source| unfit(name, source))
}

fn unfit(name: &str, source: PayloadError) -> CheckpointError {
    CheckpointError::Payload { name: name.to_owned(), source }
}

/// Returns the key of an operation. An input becomes a part of the name.
pub(crate) fn place(
    ledger: &Ledger,
    kind: Kind,
    name: &StepName,
    input: Result<Option<InputHash>, PayloadError>,
) -> Result<Key, CheckpointError> {
    let input =
        input.map_err(|source| CheckpointError::Payload { name: name.to_string(), source })?;
    let name = match input {
        Some(hash) => Name::new(format!("{name}:{hash}"))?,
        None => Name::new(name.to_string())?,
    };
    Ok(ledger.next_key(kind, name))
}
