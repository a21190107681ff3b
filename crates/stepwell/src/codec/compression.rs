//! Compression with zstd.

use std::io::Read as _;

use stepwell_core::{Codec, CodecError, Place};
use zstd::bulk::Compressor;
use zstd::stream::Decoder;

/// The default level of zstd, which compresses faster than most disks write.
const LEVEL: i32 = 3;
/// The allowance for the envelope around a compressed payload, in bytes.
const AROUND: usize = 32;
/// The length in bytes below which a payload is not compressed.
const SHORT: usize = 100;
/// The length in bytes above which a payload is not compressed. A stored payload that decompresses
/// to more than this length is therefore damaged.
const LONG: usize = 64 << 20;

/// Compresses payloads with zstd. Payloads that would not become shorter are stored as they are,
/// and so are payloads of less than 100 bytes or more than 64 MiB.
///
/// Compression must come before encryption, because encrypted bytes do not compress. The length of
/// a payload that is compressed and then encrypted reveals something about its content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compression {
    _private: (),
}

impl Compression {
    /// Returns a codec that compresses with zstd's default level.
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl Codec for Compression {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn encode(&self, bytes: &[u8], _place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        if !(SHORT..=LONG).contains(&bytes.len()) {
            return Ok(None);
        }
        let failed = |error: std::io::Error| CodecError::Other(format!("zstd: {error}"));
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        compressor.include_checksum(true).map_err(failed)?;
        let compressed = compressor.compress(bytes).map_err(failed)?;
        // The envelope stores the bytes as base64: 4 characters for 3 bytes.
        Ok((compressed.len().div_ceil(3) * 4 + AROUND < bytes.len()).then_some(compressed))
    }

    fn decode(
        &self,
        bytes: &[u8],
        _key: Option<&str>,
        _place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError> {
        let damaged = |error: std::io::Error| CodecError::Damaged(format!("zstd: {error}"));
        let mut decompressed = Vec::new();
        let decoder = Decoder::with_buffer(bytes).map_err(damaged)?;
        let length =
            decoder.take(LONG as u64 + 1).read_to_end(&mut decompressed).map_err(damaged)?;
        if length > LONG {
            return Err(CodecError::Damaged(
                "zstd: it is longer than anything that is compressed".into(),
            ));
        }
        Ok(decompressed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn place() -> Place<'static> {
        Place::Params(uuid::Uuid::nil().into())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Compression::new().decode(bytes, None, &place())
    }

    fn encode(bytes: &[u8]) -> Option<Vec<u8>> {
        Compression::new().encode(bytes, &place()).unwrap()
    }

    #[test]
    fn what_does_not_get_shorter_stays_as_it_is() {
        assert_eq!(encode(&[b'x'; SHORT - 1]), None);
        assert!(encode(&[b'x'; SHORT]).is_some());
        let random: Vec<u8> = (0..1000).map(|_| rand::random()).collect();
        assert_eq!(encode(&random), None);
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for _ in 0..=LONG >> 20 {
            encoder.write_all(&[0; 1 << 20]).unwrap();
        }
        let error = decode(&encoder.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("longer than anything that is compressed"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(word in "\\PC{1,20}", times in 1_usize..200) {
            let text = word.repeat(times).into_bytes();
            if let Some(compressed) = encode(&text) {
                prop_assert!(compressed.len() < text.len());
                prop_assert_eq!(decode(&compressed).unwrap(), text);
            }
        }

        #[test]
        fn damage_is_seen(word in "\\PC{1,20}", at: prop::sample::Index, with: u8) {
            let text = word.repeat(200).into_bytes();
            let mut compressed = encode(&text).unwrap();
            let at = at.index(compressed.len());
            compressed[at] = with;
            if let Ok(decompressed) = decode(&compressed) {
                prop_assert_eq!(decompressed, text);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes: Vec<u8>, begins: bool) {
            if begins {
                bytes.splice(0..0, [0x28, 0xB5, 0x2F, 0xFD]);
            }
            let _ = decode(&bytes);
        }
    }
}
