//! Codecs: transformations of payloads before a store keeps them.

pub(crate) mod encoded;
pub(crate) mod envelope;
pub(crate) mod payloads;

use std::fmt;

use crate::base::codec_error::CodecError;
use crate::base::ids::TaskId;
use crate::base::journal::Key;
use crate::base::name::Name;

/// A transformation of payloads into bytes that a store keeps, and back: compression, encryption.
///
/// An application passes a codec to `Durable::builder().codec(..)`; the crate `stepwell` brings
/// two.
///
/// A client may have several codecs. The client applies them in their order to payloads that it
/// writes, and in the reverse order to payloads that it reads. The stored form names its codecs.
/// Payloads from before, and those of clients with other codecs, are therefore readable while the
/// client has these codecs.
///
/// ```
/// use stepwell_core::{Codec, CodecError, Place};
///
/// /// Hides payloads from nobody but those who look over a shoulder.
/// #[derive(Debug)]
/// struct Inverted;
///
/// impl Codec for Inverted {
///     fn name(&self) -> &'static str {
///         "inverted"
///     }
///
///     fn encode(&self, bytes: &[u8], _place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
///         Ok(Some(bytes.iter().map(|byte| !byte).collect()))
///     }
///
///     fn decode(
///         &self,
///         bytes: &[u8],
///         _key: Option<&str>,
///         _place: &Place<'_>,
///     ) -> Result<Vec<u8>, CodecError> {
///         Ok(bytes.iter().map(|byte| !byte).collect())
///     }
/// }
/// ```
pub trait Codec: fmt::Debug + Send + Sync + 'static {
    /// Returns the name that is stored with each encoded payload, by which the codec is found
    /// again.
    ///
    /// The name must not hold a colon, and must not change while there are such payloads.
    fn name(&self) -> &'static str;

    /// Returns the id of the key that [`encode`](Self::encode) uses, if there is one.
    ///
    /// The id is stored beside the name, and passed to [`decode`](Self::decode). Default: `None`.
    fn key(&self) -> Option<&str> {
        None
    }

    /// Returns whether every payload that is read must have been encoded by this codec.
    ///
    /// Text without its encoding is then refused, whatever its origin. Default: `false`.
    fn is_required(&self) -> bool {
        false
    }

    /// Returns the bytes to store; `None` to leave the given bytes as they are.
    ///
    /// # Errors
    /// The engine treats the error as one of the store. If the codec cannot encode other payloads
    /// either (its key service cannot be reached, say), nothing is written, and the engine tries
    /// again. If the codec can encode others, it does not take this payload, and the owner of the
    /// payload gets the error.
    fn encode(&self, bytes: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError>;

    /// Returns the bytes that were passed to [`encode`](Self::encode), with the key of the stored
    /// id and in the same place.
    ///
    /// # Errors
    /// The bytes cannot be restored. The error fails the attempt that reads them, and nothing else.
    fn decode(
        &self,
        bytes: &[u8],
        key: Option<&str>,
        place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError>;
}

/// A codec that only reads: it decodes stored payloads, and leaves new payloads as they are.
///
/// ```
/// # use stepwell_core::{Codec, ReadOnly};
/// # fn stop<C: Codec>(codec: C) -> impl Codec {
/// ReadOnly(codec)
/// # }
/// ```
#[derive(Debug)]
pub struct ReadOnly<C>(
    /// The codec.
    pub C,
);

impl<C: Codec> Codec for ReadOnly<C> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn encode(&self, _bytes: &[u8], _place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        Ok(None)
    }

    fn decode(
        &self,
        bytes: &[u8],
        key: Option<&str>,
        place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError> {
        self.0.decode(bytes, key, place)
    }
}

/// The place of a payload in a store.
///
/// An encrypting codec authenticates the [`associated_data`](Place::associated_data) of the place
/// with the payload. A payload that was copied to another place in the database is therefore
/// refused there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The parameters of a task.
    Params(TaskId),
    /// The output of a task.
    Output(TaskId),
    /// The texts of a task's failure.
    Failure(TaskId),
    /// The value of an entry of a task's journal.
    Entry {
        /// The task.
        task_id: TaskId,
        /// The number of the entry in the journal.
        seq: u64,
        /// The operation.
        key: &'a Key,
    },
    /// The texts of the failure in an entry of a task's journal.
    EntryFailure {
        /// The task.
        task_id: TaskId,
        /// The number of the entry in the journal.
        seq: u64,
        /// The operation.
        key: &'a Key,
    },
    /// The definition of a schedule: the parameters of its tasks, and its timing.
    Schedule(&'a Name),
    /// The payload of an event.
    Event(&'a Name),
    /// A lifecycle event in the history of a task.
    History(TaskId),
    /// The payload of a message.
    Message {
        /// The task in whose mailbox the message is.
        task_id: TaskId,
        /// The topic of the message.
        topic: &'a Name,
    },
}

impl Place<'_> {
    /// Returns the bytes that an encrypting codec authenticates with a payload.
    ///
    /// Invariant: the bytes of two places are never the same, and those of a place never change,
    /// because encrypted payloads could not be read with other bytes. The bytes begin with a
    /// version, which has another number in a later form.
    pub fn associated_data(&self) -> Vec<u8> {
        let mut data = Data(vec![VERSION]);
        match *self {
            Self::Params(task_id) => data.part(1).task(task_id),
            Self::Output(task_id) => data.part(2).task(task_id),
            Self::Failure(task_id) => data.part(3).task(task_id),
            Self::Entry { task_id, seq, key } => data.part(4).task(task_id).number(seq).key(key),
            Self::EntryFailure { task_id, seq, key } => {
                data.part(5).task(task_id).number(seq).key(key)
            }
            Self::Schedule(name) => data.part(6).text(name.as_str()),
            Self::Event(name) => data.part(7).text(name.as_str()),
            Self::History(task_id) => data.part(8).task(task_id),
            Self::Message { task_id, topic } => data.part(9).task(task_id).text(topic.as_str()),
        };
        data.0
    }
}

/// The version of the form of associated data.
const VERSION: u8 = 1;

/// The associated data while it is built: numbers are little-endian, and a text follows its length
/// in bytes.
struct Data(Vec<u8>);

impl Data {
    fn part(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    fn task(&mut self, task_id: TaskId) -> &mut Self {
        self.0.extend(task_id.as_uuid().as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn key(&mut self, key: &Key) -> &mut Self {
        self.text(key.kind.as_str()).text(key.name.as_str()).number(key.ordinal.into())
    }
}

/// The name of the place for people to read.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Params(task_id) => write!(f, "the parameters of task {task_id}"),
            Self::Output(task_id) => write!(f, "the output of task {task_id}"),
            Self::Failure(task_id) => write!(f, "the failure of task {task_id}"),
            Self::Entry { task_id, seq, key } => {
                write!(f, "entry {seq} ({key}) in the journal of task {task_id}")
            }
            Self::EntryFailure { task_id, seq, key } => {
                write!(f, "the failure of entry {seq} ({key}) in the journal of task {task_id}")
            }
            Self::Schedule(name) => write!(f, "the schedule \"{name}\""),
            Self::History(task_id) => write!(f, "the history of task {task_id}"),
            Self::Event(name) => write!(f, "the event \"{name}\""),
            Self::Message { task_id, topic } => {
                write!(f, "a message \"{topic}\" to task {task_id}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::journal::Kind;

    /// Each form is written out by hand, because payloads that were encrypted with these bytes must
    /// be read with the same bytes.
    #[test]
    fn the_bytes_that_encryption_authenticates_never_change() {
        let task_id = TaskId::from(Uuid::from_u128(7));
        let name = Name::new("paid").unwrap();
        let key = Key { kind: Kind::Step, name: name.clone(), ordinal: 2 };
        let id = "00000000000000000000000000000007";
        let paid = "0400000000000000 70616964";
        let entry =
            format!("{id} 0300000000000000 0400000000000000 73746570 {paid} 0200000000000000");
        for (place, bytes) in [
            (Place::Params(task_id), format!("01 01 {id}")),
            (Place::Output(task_id), format!("01 02 {id}")),
            (Place::Failure(task_id), format!("01 03 {id}")),
            (Place::Entry { task_id, seq: 3, key: &key }, format!("01 04 {entry}")),
            (Place::EntryFailure { task_id, seq: 3, key: &key }, format!("01 05 {entry}")),
            (Place::Schedule(&name), format!("01 06 {paid}")),
            (Place::Event(&name), format!("01 07 {paid}")),
            (Place::History(task_id), format!("01 08 {id}")),
            (Place::Message { task_id, topic: &name }, format!("01 09 {id} {paid}")),
        ] {
            let hex: String =
                place.associated_data().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, bytes.replace(' ', ""), "{place}");
        }
    }
}
