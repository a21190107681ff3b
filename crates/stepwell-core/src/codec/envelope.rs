//! The stored form of an encoded payload, which is JSON text as well, because the columns of a
//! store hold JSON.
//!
//! ```text
//!   {"$stepwell":["zstd","aes256gcm:2026-11"],"data":"…base64…"}
//! ```
//!
//! The list names the codecs in the order in which they were applied, each with the id of its key.
//! Text that does not begin so is the payload itself: it was written before there was a codec, or
//! was not worth compressing. A required codec, as encryption is, refuses such text. A payload that
//! itself begins as an envelope is stored in an envelope with an empty list.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::base::codec_error::CodecError;
use crate::base::guard::{Panic, guard};
use crate::codec::{Codec, Place};

/// The beginning of every envelope.
const BEGIN: &str = "{\"$stepwell\":[";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(rename = "$stepwell", borrow)]
    layers: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    data: Cow<'a, str>,
}

/// The codecs of a client, of which there is at least one; a value that is cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Codecs(Arc<[Arc<dyn Codec>]>);

impl Codecs {
    /// Returns the codecs; `None` when the list is empty.
    pub(crate) fn new(codecs: &[Arc<dyn Codec>]) -> Option<Self> {
        (!codecs.is_empty()).then(|| Self(codecs.into()))
    }

    /// Returns the stored form of a text; `None` when this is the text itself.
    pub(crate) fn seal(&self, text: &str, place: &Place<'_>) -> Result<Option<String>, CodecError> {
        let mut bytes = Cow::Borrowed(text.as_bytes());
        let mut layers = Vec::new();
        for codec in &*self.0 {
            if let Some(encoded) = guarded(codec, || codec.encode(&bytes, place))? {
                bytes = Cow::Owned(encoded);
                layers.push(match codec.key() {
                    Some(key) => Cow::Owned(format!("{}:{key}", codec.name())),
                    None => Cow::Borrowed(codec.name()),
                });
            }
        }
        if layers.is_empty() && !text.starts_with(BEGIN) {
            return Ok(None);
        }
        let envelope = Envelope { layers, data: BASE64.encode(&bytes).into() };
        serde_json::to_string(&envelope)
            .map(Some)
            .map_err(|error| CodecError::Other(error.to_string()))
    }

    /// Refuses an envelope without the layer of a required codec.
    fn require(&self, layers: &[Cow<'_, str>]) -> Result<(), CodecError> {
        let has = |name: &str| layers.iter().any(|layer| layer.split(':').next() == Some(name));
        match self.0.iter().find(|codec| codec.is_required() && !has(codec.name())) {
            Some(codec) => Err(CodecError::Plain(codec.name())),
            None => Ok(()),
        }
    }

    /// Returns the text of a stored form; `None` when this is the stored form itself.
    pub(crate) fn open(&self, kept: &str, place: &Place<'_>) -> Result<Option<String>, CodecError> {
        if !kept.starts_with(BEGIN) {
            return self.require(&[]).map(|()| None);
        }
        let envelope: Envelope<'_> =
            serde_json::from_str(kept).map_err(|error| CodecError::Damaged(error.to_string()))?;
        self.require(&envelope.layers)?;
        let mut bytes = BASE64
            .decode(&*envelope.data)
            .map_err(|error| CodecError::Damaged(error.to_string()))?;
        for layer in envelope.layers.iter().rev() {
            let (name, key) = match layer.split_once(':') {
                Some((name, key)) => (name, Some(key)),
                None => (&**layer, None),
            };
            let codec = self.0.iter().find(|codec| codec.name() == name);
            let codec = codec.ok_or_else(|| CodecError::UnknownCodec(name.to_owned()))?;
            bytes = guarded(codec, || codec.decode(&bytes, key, place))?;
        }
        String::from_utf8(bytes).map(Some).map_err(|error| CodecError::Damaged(error.to_string()))
    }
}

/// Returns the error that names the codec of an encoded payload, for a client without codecs.
///
/// The result is `None` when the payload is not encoded.
pub(crate) fn encoded_with(kept: &str, place: &Place<'_>) -> Option<CodecError> {
    let none = Codecs(Arc::new([]));
    none.open(kept, place).err().filter(|error| matches!(error, CodecError::UnknownCodec(_)))
}

/// Calls a codec; a panic of the codec is an error of this one payload.
fn guarded<T>(
    codec: &Arc<dyn Codec>,
    call: impl FnOnce() -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    let panicked =
        |panic: Panic| CodecError::Panicked { codec: codec.name(), panic: panic.to_string() };
    guard(call).map_err(panicked).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::base::payload::{Payload, PayloadError};
    use crate::codec::payloads::Held;

    /// A codec that reverses the bytes, if there are any.
    #[derive(Debug)]
    struct Turned(&'static str, Option<&'static str>);

    impl Codec for Turned {
        fn name(&self) -> &'static str {
            self.0
        }

        fn key(&self) -> Option<&str> {
            self.1
        }

        fn encode(&self, bytes: &[u8], _place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
            Ok((!bytes.is_empty()).then(|| bytes.iter().rev().copied().collect()))
        }

        fn decode(
            &self,
            bytes: &[u8],
            key: Option<&str>,
            _place: &Place<'_>,
        ) -> Result<Vec<u8>, CodecError> {
            if key != self.1 {
                return Err(CodecError::Other("another key".into()));
            }
            Ok(bytes.iter().rev().copied().collect())
        }
    }

    fn place() -> Place<'static> {
        Place::Params(Uuid::nil().into())
    }

    fn codecs() -> Codecs {
        Codecs::new(&[Arc::new(Turned("a", None)), Arc::new(Turned("b", Some("k:1")))]).unwrap()
    }

    #[test]
    fn the_form_stays_what_it_is() {
        let kept = codecs().seal("null", &place()).unwrap().unwrap();
        assert_eq!(kept, r#"{"$stepwell":["a","b:k:1"],"data":"bnVsbA=="}"#);
        let only_a = Codecs::new(&[Arc::new(Turned("a", None))]).unwrap();
        assert_eq!(only_a.open(&kept, &place()), Err(CodecError::UnknownCodec("b".into())));
        assert_eq!(codecs().open(r#"{"$stepwell":"a"}"#, &place()), Ok(None));
        assert!(Codecs::new(&[]).is_none());
    }

    #[test]
    fn an_unreadable_payload_says_why_and_is_kept_as_it_was() {
        let json = r#"{"$stepwell":["c"],"data":""}"#;
        let mut payload = Payload::from_json(json);
        codecs().decode(|each| each(Held::Payload(&mut payload), place()));
        assert!(matches!(payload.decode::<()>(), Err(PayloadError::Unreadable { .. })));
        let shown = serde_json::to_value(&payload).unwrap();
        assert!(shown["$unreadable"].as_str().unwrap().contains("the codec `c`"), "{shown}");
        codecs().encode(|each| each(Held::Payload(&mut payload), place())).unwrap();
        assert_eq!(payload.as_str(), json);
    }

    #[test]
    fn what_is_no_json_inside_is_unreadable_and_can_be_shown() {
        for data in ["bm9uc2Vuc2U=", "", "bnVsbCBudWxs"] {
            let json = format!(r#"{{"$stepwell":[],"data":"{data}"}}"#);
            let mut payload = Payload::from_json(json.as_str());
            codecs().decode(|each| each(Held::Payload(&mut payload), place()));
            assert!(
                matches!(payload.decode::<()>(), Err(PayloadError::Unreadable { .. })),
                "{data}"
            );
            let shown = serde_json::to_value(&payload).unwrap();
            assert!(shown["$unreadable"].as_str().unwrap().contains("is damaged"), "{shown}");
            codecs().encode(|each| each(Held::Payload(&mut payload), place())).unwrap();
            assert_eq!(payload.as_str(), json);
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text: String, like: bool, count in 1_usize..3) {
            let text = if like { format!("{BEGIN}{text}") } else { text };
            let codecs = Codecs::new(&codecs().0[..count]).unwrap();
            let kept = codecs.seal(&text, &place()).unwrap();
            let kept = kept.as_deref().unwrap_or(&text);
            let opened = codecs.open(kept, &place()).unwrap();
            prop_assert_eq!(opened.as_deref().unwrap_or(kept), &*text);
        }

        #[test]
        fn whatever_begins_as_an_envelope_is_read_or_refused(
            text: String,
            layers in vec("a|b|b:k:1|[ab:k1]{0,5}", 0..4),
            data in "[A-Za-z0-9+/]{0,3}=?|\\PC{0,9}",
        ) {
            prop_assert_ne!(codecs().open(&format!("{BEGIN}{text}"), &place()), Ok(None));
            let known = layers.iter().all(|layer| layer == "a" || layer == "b:k:1");
            let bytes = BASE64.decode(&data).ok().filter(|_| known);
            let envelope = serde_json::json!({ "$stepwell": layers, "data": data }).to_string();
            let opened = codecs().open(&envelope, &place());
            // Each layer reverses the bytes once.
            let text = bytes.and_then(|mut bytes| {
                if layers.len() % 2 == 1 { bytes.reverse() }
                String::from_utf8(bytes).ok()
            });
            prop_assert_eq!(opened.ok(), text.map(Some));
        }

        #[test]
        fn one_wrong_character_stops_nothing(
            text in ".{1,40}",
            at: prop::sample::Index,
            with: char,
        ) {
            let kept = codecs().seal(&text, &place()).unwrap().unwrap();
            let mut kept: Vec<_> = kept.chars().collect();
            let at = at.index(kept.len());
            kept[at] = with;
            let kept: String = kept.into_iter().collect();
            let opened = codecs().open(&kept, &place());
            prop_assert_eq!(opened == Ok(None), !kept.starts_with(BEGIN));
        }
    }
}
