//! Codecs: what payloads are made into before a store keeps them.

pub(crate) mod encoded;
pub(crate) mod envelope;
pub(crate) mod payloads;

use std::fmt;

use crate::base::codec_error::CodecError;
use crate::base::ids::TaskId;
use crate::base::journal::Key;
use crate::base::name::Name;

/// Makes bytes of a payload that a store can keep, and the payload of them again: compression,
/// encryption. To be given to `Durable::builder().codec(..)`; the crate `stepwell` brings two.
///
/// A client may have several. They are applied in their order to what is written, and backwards to
/// what is read. What is kept names them, so that payloads of before, and of clients with other
/// codecs, stay readable as long as their codecs are there.
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
///     fn decode(&self, bytes: &[u8], _key: Option<&str>, _place: &Place<'_>) -> Result<Vec<u8>, CodecError> {
///         Ok(bytes.iter().map(|byte| !byte).collect())
///     }
/// }
/// ```
pub trait Codec: fmt::Debug + Send + Sync + 'static {
    /// The name that is kept with what it has encoded, and by which it is found again. It must not
    /// hold a colon, and must stay the same as long as there are such payloads.
    fn name(&self) -> &'static str;

    /// The id of the key that [`encode`](Self::encode) uses, where there is one. It is kept beside
    /// the name, and handed to [`decode`](Self::decode). By default there is none.
    fn key(&self) -> Option<&str> {
        None
    }

    /// Whether everything that is read must have been encoded by it. Then text that was not is
    /// refused, whoever wrote it. By default that is not so.
    fn is_required(&self) -> bool {
        false
    }

    /// What is to be kept of the bytes; `None` to leave them as they are.
    ///
    /// # Errors
    /// Taken as an error of the store: what it is about is not written, and tried again, as long as
    /// the codec encodes nothing else either (its key service cannot be reached, say). One that
    /// encodes others does not take this payload, whose owner gets the error.
    fn encode(&self, bytes: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError>;

    /// The bytes that [`encode`](Self::encode) was given, with the key whose id was kept, and in
    /// the same place.
    ///
    /// # Errors
    /// When they cannot be had. It fails the attempt that reads them, and nothing else.
    fn decode(
        &self,
        bytes: &[u8],
        key: Option<&str>,
        place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError>;
}

/// A codec that reads, and no longer writes: what it has encoded stays readable, what is written
/// from now on is not encoded by it.
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

/// Where a payload belongs. An encrypting codec authenticates its
/// [`associated_data`](Place::associated_data) with the payload, so that one that was copied to
/// another place in the database is not taken for what belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A task's parameters.
    Params(TaskId),
    /// A task's output.
    Output(TaskId),
    /// What a task's failure says.
    Failure(TaskId),
    /// The value of an entry of a task's journal.
    Entry {
        /// The task.
        task_id: TaskId,
        /// The entry's place in the journal.
        seq: u64,
        /// The operation.
        key: &'a Key,
    },
    /// What the failure of an entry of a task's journal says.
    EntryFailure {
        /// The task.
        task_id: TaskId,
        /// The entry's place in the journal.
        seq: u64,
        /// The operation.
        key: &'a Key,
    },
    /// What is known of a schedule: its tasks' parameters, and its timing.
    Schedule(&'a Name),
    /// What an event carries.
    Event(&'a Name),
    /// What the history tells of a task.
    History(TaskId),
    /// What a message carries.
    Message {
        /// The task whose mailbox it is in.
        task_id: TaskId,
        /// Its topic.
        topic: &'a Name,
    },
}

impl Place<'_> {
    /// Returns the bytes that an encrypting codec authenticates with a payload.
    ///
    /// The bytes of two places are never the same, and those of a place never change: with others,
    /// what has been encrypted could not be read any more. They begin with a version, which a
    /// later form will have another number for.
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

/// Associated data in the making: numbers are little-endian, and a text follows its length in
/// bytes.
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

/// For people.
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

    /// Each form is written out by hand: what was encrypted with these bytes has to be read with
    /// these bytes.
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
