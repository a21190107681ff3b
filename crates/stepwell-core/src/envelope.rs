//! What codecs make of a payload, as a store keeps it: JSON text still, because a store's columns hold JSON.
//!
//! ```text
//!   {"$stepwell":["zstd","aes256gcm:2026-11"],"data":"…base64…"}
//! ```
//!
//! The list names the codecs in the order in which they were applied, each with the id of its key. Text that does not
//! begin so is the payload itself: written before there was a codec, or not worth compressing. A payload that itself begins
//! so is kept under an empty list.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, CodecError, Place};

/// How every envelope begins.
const BEGIN: &str = "{\"$stepwell\":[";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(rename = "$stepwell", borrow)]
    layers: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    data: Cow<'a, str>,
}

/// The codecs of a client, of which there is one at least. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Codecs(Arc<[Arc<dyn Codec>]>);

impl Codecs {
    /// `None` when there are none.
    pub(crate) fn new(codecs: &[Arc<dyn Codec>]) -> Option<Self> {
        (!codecs.is_empty()).then(|| Self(codecs.into()))
    }

    /// What is kept of a text; `None` for the text itself.
    pub(crate) fn seal(&self, text: &str, place: &Place<'_>) -> Result<Option<String>, CodecError> {
        let mut bytes = Cow::Borrowed(text.as_bytes());
        let mut layers = Vec::new();
        for codec in &*self.0 {
            if let Some(encoded) = codec.encode(&bytes, place)? {
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
        serde_json::to_string(&envelope).map(Some).map_err(|error| CodecError::Other(error.to_string()))
    }

    /// The text of which this was kept; `None` when it is the text itself.
    pub(crate) fn open(&self, kept: &str, place: &Place<'_>) -> Result<Option<String>, CodecError> {
        if !kept.starts_with(BEGIN) {
            return Ok(None);
        }
        let envelope: Envelope<'_> =
            serde_json::from_str(kept).map_err(|error| CodecError::Damaged(error.to_string()))?;
        let mut bytes =
            BASE64.decode(&*envelope.data).map_err(|error| CodecError::Damaged(error.to_string()))?;
        for layer in envelope.layers.iter().rev() {
            let (name, key) = match layer.split_once(':') {
                Some((name, key)) => (name, Some(key)),
                None => (&**layer, None),
            };
            let codec = self.0.iter().find(|codec| codec.name() == name);
            let codec = codec.ok_or_else(|| CodecError::UnknownCodec(name.to_owned()))?;
            bytes = codec.decode(&bytes, key, place)?;
        }
        String::from_utf8(bytes).map(Some).map_err(|error| CodecError::Damaged(error.to_string()))
    }
}
