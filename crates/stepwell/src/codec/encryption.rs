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

/// Encrypts payloads with AES-256-GCM, each with a nonce of its own: 96 random bits of the
/// operating system's. A payload is bound to its place (a task's parameters, an entry of its
/// journal, an event of that name): copied elsewhere in the database, it cannot be read.
///
/// What is not encrypted is not read, unless [`accept_plain`](Self::accept_plain) allows it.
///
/// What is written is encrypted with the one current key. Keys are changed by making another one
/// current, and giving the old ones to [`also_reads`](Self::also_reads).
///
/// **Limit:** nonces are random, and one that repeats under the same key gives away what is
/// encrypted with it. Take another key before 2³² payloads were written with one (NIST SP 800-38D):
/// that is 1,000 a second for 49 days.
#[derive(Clone, Debug)]
pub struct Encryption {
    current: Key,
    old: Vec<Key>,
    accepts_plain: bool,
}

impl Encryption {
    /// Encrypts with this key.
    pub const fn new(current: Key) -> Self {
        Self { current, old: Vec::new(), accepts_plain: false }
    }

    /// Also reads what was, or is by others, encrypted with this key. May be called for several.
    pub fn also_reads(mut self, key: Key) -> Self {
        self.old.push(key);
        self
    }

    /// Also reads what is not encrypted, for as long as a database has payloads from before it was.
    /// Without this they are refused, because whoever can write to the database could put its
    /// own text in the place of what is encrypted.
    pub const fn accept_plain(mut self) -> Self {
        self.accepts_plain = true;
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

    fn is_required(&self) -> bool {
        !self.accepts_plain
    }

    fn encode(&self, bytes: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        let mut nonce = [0; NONCE];
        SysRng.try_fill_bytes(&mut nonce).map_err(|error| {
            CodecError::Other(format!("the operating system gives no random bytes: {error}"))
        })?;
        let place = place.associated_data();
        let payload = Payload { msg: bytes, aad: &place };
        let sealed = self.current.cipher.encrypt(&Nonce::from(nonce), payload);
        let sealed =
            sealed.map_err(|_| CodecError::Other("it is too long to be encrypted".into()))?;
        Ok(Some([&nonce[..], &sealed].concat()))
    }

    fn decode(
        &self,
        bytes: &[u8],
        key: Option<&str>,
        place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError> {
        let id = key.unwrap_or_default();
        let Some((nonce, sealed)) = bytes.split_first_chunk::<NONCE>() else {
            return Err(CodecError::Damaged("it is too short".into()));
        };
        if !self.keys().any(|key| key.id == id) {
            let known: Vec<_> = self.keys().map(|key| format!("`{}`", key.id)).collect();
            return Err(CodecError::MissingKey { key: id.to_owned(), known: known.join(", ") });
        }
        let place = place.associated_data();
        // Two keys by one id are a mistake, which must not make anything unreadable.
        let mut keys = self.keys().filter(|key| key.id == id);
        let opened = keys.find_map(|key| {
            let payload = Payload { msg: sealed, aad: &place };
            key.cipher.decrypt(&Nonce::from(*nonce), payload).ok()
        });
        opened.ok_or_else(|| CodecError::Sealed(id.to_owned()))
    }
}

/// A key for [`Encryption`]: 256 secret bits, and an id, which is kept in plain with everything
/// that is encrypted with it.
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
    /// As [`Key::new`]; [`InvalidKey::Text`] when the text is no base64, [`InvalidKey::Length`]
    /// when it does not hold 32 bytes.
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
    #[error(
        "{0:?} is no id for a key: take 1 to 64 letters, digits, `-`, `_` or `.`, such as `2026-11`"
    )]
    Id(String),
    /// The text is no base64.
    #[error("the key `{0}` is no base64: make one with `openssl rand -base64 32`")]
    Text(String),
    /// The key has another length.
    #[error(
        "the key `{id}` has {bytes} bytes, and needs 32: make one with `openssl rand -base64 32`"
    )]
    Length {
        /// Its id.
        id: String,
        /// How many bytes there are.
        bytes: usize,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn place(task: u128) -> Place<'static> {
        Place::Params(Uuid::from_u128(task).into())
    }

    fn key(id: &str, byte: u8) -> Key {
        Key::new(id, [byte; KEY]).unwrap()
    }

    #[test]
    fn what_another_program_sealed_is_opened() {
        let mut bytes = [0; KEY];
        (0..).zip(&mut bytes).for_each(|(number, byte)| *byte = number);
        let encryption = Encryption::new(Key::new("k", bytes).unwrap());
        // Made by Node's `crypto`, with the nonce 00 01 … 0b.
        let sealed = "AAECAwQFBgcICQoLZXGzeqmApjvoLeTuxoEdH+b0OAF7EIDfZptHK4IQn3ZYxg==";
        let opened =
            encryption.decode(&BASE64.decode(sealed).unwrap(), Some("k"), &place(7)).unwrap();
        assert_eq!(opened, b"\"sealed elsewhere\"");
    }

    #[test]
    fn no_two_are_sealed_alike() {
        let encryption = Encryption::new(key("k", 1));
        let seal = || encryption.encode(b"null", &place(1)).unwrap().unwrap();
        assert_ne!(seal()[..NONCE], seal()[..NONCE]);
    }

    #[test]
    fn a_key_is_never_shown() {
        let bytes = *b"thirty-two bytes that are secret";
        let shown = format!("{:?}", Encryption::new(Key::new("2026-11", bytes).unwrap()));
        assert_eq!(
            shown,
            "Encryption { current: Key { id: \"2026-11\", .. }, old: [], accepts_plain: false }"
        );
        let text = BASE64.encode(bytes);
        for wrong in [&text[1..], &text[4..], &*text.replace('=', "?")] {
            let error = Key::from_base64("k", wrong).unwrap_err().to_string();
            assert!(
                error.contains("make one with `openssl rand -base64 32`")
                    && !error.contains(&text[6..12]),
                "{error}"
            );
        }
        assert!(Key::from_base64("k", &format!(" {text}\n")).is_ok());
        for id in ["", "a:b", "ü", &"x".repeat(MAX_ID + 1)] {
            assert_eq!(Key::new(id, bytes).unwrap_err(), InvalidKey::Id(id.to_owned()));
        }
    }

    #[test]
    fn two_keys_by_one_id_are_both_tried() {
        let sealed = Encryption::new(key("k", 1)).encode(b"null", &place(1)).unwrap().unwrap();
        let both = Encryption::new(key("k", 2)).also_reads(key("other", 3)).also_reads(key("k", 1));
        assert_eq!(both.decode(&sealed, Some("k"), &place(1)).unwrap(), b"null");
        let error = both.decode(&sealed, Some("gone"), &place(1)).unwrap_err().to_string();
        assert!(
            error.contains("with the key `gone`, and this client has `k`, `other`, `k`"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn what_is_sealed_comes_back_and_in_its_place_only(bytes: Vec<u8>) {
            let encryption = Encryption::new(key("k", 1));
            let sealed = encryption.encode(&bytes, &place(1)).unwrap().unwrap();
            prop_assert_eq!(encryption.decode(&sealed, Some("k"), &place(1)).unwrap(), bytes);
            prop_assert!(encryption.decode(&sealed, Some("k"), &place(2)).is_err());
            let another = Encryption::new(key("k", 2));
            prop_assert_eq!(another.decode(&sealed, Some("k"), &place(1)), Err(CodecError::Sealed("k".into())));
        }

        #[test]
        fn one_wrong_bit_is_seen(bytes: Vec<u8>, at: prop::sample::Index, bit in 0..8) {
            let encryption = Encryption::new(key("k", 1));
            let mut sealed = encryption.encode(&bytes, &place(1)).unwrap().unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            prop_assert_eq!(encryption.decode(&sealed, Some("k"), &place(1)), Err(CodecError::Sealed("k".into())));
        }

        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>, key_id in proptest::option::of("k?")) {
            prop_assert!(Encryption::new(key("k", 1)).decode(&bytes, key_id.as_deref(), &place(1)).is_err());
        }
    }
}
