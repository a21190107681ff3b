//! Compression with zstd.

use std::io::Read as _;

use stepwell_core::{Codec, CodecError, Place};
use zstd::bulk::Compressor;
use zstd::stream::Decoder;

/// zstd's own default: faster than most disks.
const LEVEL: i32 = 3;
/// How many bytes are written around what was compressed.
const AROUND: usize = 32;
/// What is shorter is not worth a try.
const SHORT: usize = 100;
/// What is longer stays as it is, so that nothing that is longer has to be taken for undamaged when it is read.
const LONG: usize = 256 << 20;

/// Compresses payloads with zstd. Those that would not get shorter, and those of more than 256 MiB, stay as they are.
///
/// Where payloads are encrypted as well, they are to be compressed first: what is encrypted cannot be compressed. Their
/// length then tells something of what is in them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compression {
    _private: (),
}

impl Compression {
    /// Compression with zstd's default level.
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
        // The form in which it is kept makes four bytes of three.
        Ok((compressed.len().div_ceil(3) * 4 + AROUND < bytes.len()).then_some(compressed))
    }

    fn decode(&self, bytes: &[u8], _key: Option<&str>, _place: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        let damaged = |error: std::io::Error| CodecError::Damaged(format!("zstd: {error}"));
        let mut decompressed = Vec::new();
        let decoder = Decoder::with_buffer(bytes).map_err(damaged)?;
        let length = decoder.take(LONG as u64 + 1).read_to_end(&mut decompressed).map_err(damaged)?;
        if length > LONG {
            return Err(CodecError::Damaged("zstd: it is longer than anything that is compressed".into()));
        }
        Ok(decompressed)
    }
}
