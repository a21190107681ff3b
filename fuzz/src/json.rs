//! JSON text: a payload is what JSON readers can read, and comes back as it was.

use serde_json::Value;
use stepwell::Payload;

use crate::said;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let value = serde_json::from_str::<Value>(text);
    match serde_json::from_str::<Payload>(text) {
        Ok(payload) => accepted(&payload, value),
        Err(error) => {
            said(&error, text.len());
            assert!(value.is_err(), "refused, though it can be read: {error}");
        }
    }
    let stored = Payload::stored(text, "the row");
    let Some(error) = stored.unreadable() else { return assert_eq!(stored.as_str(), text) };
    said(error, text.len());
    assert!(stored.decode::<Value>().is_err());
    serde_json::from_str::<Value>(stored.as_str()).expect("what is shown in its place is JSON");
}

fn accepted(payload: &Payload, value: serde_json::Result<Value>) {
    let kept = payload.as_str();
    assert!(!kept.contains(['\n', '\r']), "a line break");
    assert_eq!(serde_json::from_str::<Payload>(kept).unwrap(), *payload);
    assert_eq!(serde_json::to_string(payload).unwrap(), kept);
    let value = match value {
        Ok(value) => value,
        Err(error) => {
            let error = said(error, kept.len());
            // A program may have a type for such numbers, and for such depths.
            let known =
                error.contains("number out of range") || error.contains("recursion limit exceeded");
            return assert!(known, "accepted, though it cannot be read: {error}");
        }
    };
    assert_eq!(payload.decode::<Value>().unwrap(), value);
    match Payload::encode(&value, Payload::DEFAULT_LIMIT) {
        Ok(encoded) => {
            assert_eq!(encoded.decode::<Value>().unwrap(), value);
            assert!(depth(&value) <= Payload::MAX_DEPTH);
        }
        Err(error) => {
            said(error, kept.len());
            assert!(depth(&value) > Payload::MAX_DEPTH || kept.len() > Payload::DEFAULT_LIMIT);
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
