//! Encryption with AES-256-GCM.

use std::fmt;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::TryRng as _;
use rand::rngs::SysRng;
use stepwell_core::{Codec, CodecError, Place};
use zeroize::Zeroizing;

/// How long a key is, in bytes.
const KEY: usize = 32;
/// How long a nonce is, in bytes.
const NONCE: usize = 12;
/// The longest id of a key, in bytes.
const MAX_ID: usize = 64;

/// Encrypts payloads with AES-256-GCM, each with a nonce of its own: 96 random bits of the operating system's. A
/// payload is bound to its place (a task's parameters, an entry of its journal, an event of that name): copied elsewhere
/// in the database, it cannot be read.
///
/// What is written is encrypted with the one current key. Keys are changed by making another one current, and giving
/// the old ones to [`also_reads`](Self::also_reads).
///
/// **Limit:** nonces are random, and one that repeats under the same key gives away what is encrypted with it. Take
/// another key before 2³² payloads were written with one (NIST SP 800-38D): that is 1,000 a second for 49 days.
#[derive(Clone, Debug)]
pub struct Encryption {
    current: Key,
    old: Vec<Key>,
}

impl Encryption {
    /// Encrypts with this key.
    pub const fn new(current: Key) -> Self {
        Self { current, old: Vec::new() }
    }

    /// Also reads what was, or is by others, encrypted with this key. May be called for several.
    pub fn also_reads(mut self, key: Key) -> Self {
        self.old.push(key);
        self
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.old)
    }
}

impl Codec for Encryption {
    fn name(&self) -> &'static str {
        "aes256gcm"
    }

    fn key(&self) -> Option<&str> {
        Some(&self.current.id)
    }

    fn encode(&self, bytes: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        let mut nonce = [0; NONCE];
        SysRng.try_fill_bytes(&mut nonce).map_err(|error| {
            CodecError::Other(format!("the operating system gives no random bytes: {error}"))
        })?;
        let place = place.to_string();
        let payload = Payload { msg: bytes, aad: place.as_bytes() };
        let sealed = self.current.cipher.encrypt(&Nonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| CodecError::Other("it is too long to be encrypted".into()))?;
        Ok(Some([&nonce[..], &sealed].concat()))
    }

    fn decode(&self, bytes: &[u8], key: Option<&str>, place: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        let id = key.unwrap_or_default();
        let Some((nonce, sealed)) = bytes.split_first_chunk::<NONCE>() else {
            return Err(CodecError::Damaged("it is too short".into()));
        };
        if !self.keys().any(|key| key.id == id) {
            let known: Vec<_> = self.keys().map(|key| format!("`{}`", key.id)).collect();
            return Err(CodecError::MissingKey { key: id.to_owned(), known: known.join(", ") });
        }
        let place = place.to_string();
        // Two keys by one id are a mistake, which must not make anything unreadable.
        let mut keys = self.keys().filter(|key| key.id == id);
        let opened = keys.find_map(|key| {
            let payload = Payload { msg: sealed, aad: place.as_bytes() };
            key.cipher.decrypt(&Nonce::from(*nonce), payload).ok()
        });
        opened.ok_or_else(|| CodecError::Sealed(id.to_owned()))
    }
}

/// A key for [`Encryption`]: 256 secret bits, and an id, which is kept in plain with everything that is encrypted with it.
///
/// Its bytes are never shown, and are wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Key {
    id: String,
    /// Wipes itself.
    cipher: Aes256Gcm,
}

impl Key {
    /// A key of 32 bytes that nobody can guess. They must be random; a password will not do.
    ///
    /// The caller's copy of the bytes is the caller's to wipe.
    ///
    /// # Errors
    /// [`InvalidKey::Id`] when the id is not 1 to 64 letters, digits, `-`, `_` or `.`.
    pub fn new(id: impl Into<String>, bytes: [u8; KEY]) -> Result<Self, InvalidKey> {
        let (id, bytes) = (id.into(), Zeroizing::new(bytes));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > MAX_ID || !id.chars().all(plain) {
            return Err(InvalidKey::Id(id));
        }
        Ok(Self { cipher: Aes256Gcm::new((&*bytes).into()), id })
    }

    /// A key of 32 bytes in base64, as `openssl rand -base64 32` makes them.
    ///
    /// # Errors
    /// As [`Key::new`]; [`InvalidKey::Text`] when the text is no base64, [`InvalidKey::Length`] when it does not hold 32
    /// bytes.
    pub fn from_base64(id: impl Into<String>, text: &str) -> Result<Self, InvalidKey> {
        let id = id.into();
        // The reason would show a part of the text.
        let bytes = BASE64.decode(text.trim()).map_err(|_| InvalidKey::Text(id.clone()))?;
        let bytes = Zeroizing::new(bytes);
        let length = |_| InvalidKey::Length { id: id.clone(), bytes: bytes.len() };
        let bytes = Zeroizing::new(<[u8; KEY]>::try_from(bytes.as_slice()).map_err(length)?);
        Self::new(id, *bytes)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a [`Key`] could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The id will not do.
    #[error("{0:?} is no id for a key: take 1 to 64 letters, digits, `-`, `_` or `.`, such as `2026-11`")]
    Id(String),
    /// The text is no base64.
    #[error("the key `{0}` is no base64: make one with `openssl rand -base64 32`")]
    Text(String),
    /// The key has another length.
    #[error("the key `{id}` has {bytes} bytes, and needs 32: make one with `openssl rand -base64 32`")]
    Length {
        /// Its id.
        id: String,
        /// How many bytes there are.
        bytes: usize,
    },
}
