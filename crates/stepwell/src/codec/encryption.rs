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

/// The length of a key, in bytes.
const KEY: usize = 32;
/// The length of a nonce, in bytes.
const NONCE: usize = 12;
/// The maximum length of a key's id, in bytes.
const MAX_ID: usize = 64;

/// Encrypts payloads with AES-256-GCM. Each payload has its own nonce of 96 random bits from the
/// operating system. A payload is bound to its place (the parameters of a task, an entry of a
/// journal, an event of some name): a copy at another place of the database cannot be read.
///
/// A payload that is not encrypted is refused, unless [`accept_plain`](Self::accept_plain) allows
/// it.
///
/// New payloads are encrypted with the current key. To change keys, make another key the current
/// one, and pass the old keys to [`also_reads`](Self::also_reads).
///
/// **Limit:** nonces are random, and a nonce that repeats under the same key reveals the payloads
/// that are encrypted with it. Change the key before 2³² payloads are written with it (NIST SP
/// 800-38D): that is 1,000 payloads a second for 49 days.
#[derive(Clone, Debug)]
pub struct Encryption {
    current: Key,
    old: Vec<Key>,
    accepts_plain: bool,
}

impl Encryption {
    /// Returns a codec that encrypts and decrypts with this key.
    pub const fn new(current: Key) -> Self {
        Self { current, old: Vec::new(), accepts_plain: false }
    }

    /// Adds a key for decryption: one that was the current key, or that other clients write with.
    /// The method may be called several times.
    pub fn also_reads(mut self, key: Key) -> Self {
        self.old.push(key);
        self
    }

    /// Also reads payloads that are not encrypted, for a database that has payloads from before
    /// encryption was configured. Default: payloads in plain text are refused, because an attacker
    /// who can write to the database could replace encrypted payloads with plain ones.
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
        // The caller may have configured two keys with the same id: each of them is tried, so that
        // the mistake makes no payload unreadable.
        let mut keys = self.keys().filter(|key| key.id == id);
        let opened = keys.find_map(|key| {
            let payload = Payload { msg: sealed, aad: &place };
            key.cipher.decrypt(&Nonce::from(*nonce), payload).ok()
        });
        opened.ok_or_else(|| CodecError::Sealed(id.to_owned()))
    }
}

/// A key for [`Encryption`]: 256 secret bits and an id. The id is stored in plain text with every
/// payload that is encrypted with the key.
///
/// The secret bits are never displayed. A key that is dropped wipes its bits from memory.
#[derive(Clone)]
pub struct Key {
    id: String,
    /// The cipher, which wipes its copy of the key when it is dropped.
    cipher: Aes256Gcm,
}

impl Key {
    /// Makes a key of 32 bytes. The key's bytes must be random: a password is not enough.
    ///
    /// The caller has to wipe its own copy of the bytes.
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

    /// Makes a key from 32 bytes in base64, as `openssl rand -base64 32` prints them.
    ///
    /// # Errors
    /// The errors of [`Key::new`]; [`InvalidKey::Text`] when the text is not valid base64;
    /// [`InvalidKey::Length`] when the text does not hold exactly 32 bytes.
    pub fn from_base64(id: impl Into<String>, text: &str) -> Result<Self, InvalidKey> {
        let id = id.into();
        // The decoder's error is dropped, because it would show a part of the secret text.
        let bytes = BASE64.decode(text.trim()).map_err(|_| InvalidKey::Text(id.clone()))?;
        let bytes = Zeroizing::new(bytes);
        let length = |_| InvalidKey::Length { id: id.clone(), bytes: bytes.len() };
        let bytes = Zeroizing::new(<[u8; KEY]>::try_from(bytes.as_slice()).map_err(length)?);
        Self::new(id, *bytes)
    }

    /// Returns the key's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The reasons why a [`Key`] is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The id is not 1 to 64 letters, digits, `-`, `_` or `.`.
    #[error(
        "{0:?} is no id for a key: take 1 to 64 letters, digits, `-`, `_` or `.`, such as `2026-11`"
    )]
    Id(String),
    /// The text is not valid base64. The value is the key's id.
    #[error("the key `{0}` is no base64: make one with `openssl rand -base64 32`")]
    Text(String),
    /// The key does not have 32 bytes.
    #[error(
        "the key `{id}` has {bytes} bytes, and needs 32: make one with `openssl rand -base64 32`"
    )]
    Length {
        /// The key's id.
        id: String,
        /// The number of bytes that the text holds.
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
        // Node's `crypto` made this value, with the nonce 00 01 … 0b.
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
            let refused = Err(CodecError::Sealed("k".into()));
            prop_assert_eq!(another.decode(&sealed, Some("k"), &place(1)), refused);
        }

        #[test]
        fn one_wrong_bit_is_seen(bytes: Vec<u8>, at: prop::sample::Index, bit in 0..8) {
            let encryption = Encryption::new(key("k", 1));
            let mut sealed = encryption.encode(&bytes, &place(1)).unwrap().unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            let refused = Err(CodecError::Sealed("k".into()));
            prop_assert_eq!(encryption.decode(&sealed, Some("k"), &place(1)), refused);
        }

        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>, key_id in proptest::option::of("k?")) {
            let encryption = Encryption::new(key("k", 1));
            prop_assert!(encryption.decode(&bytes, key_id.as_deref(), &place(1)).is_err());
        }
    }
}
