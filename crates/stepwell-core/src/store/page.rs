//! Answers of bounded length: a page of a list is full when it has the requested number of items,
//! or [`ANSWER_BYTES`].

use std::convert::Infallible;
use std::fmt::Debug;
use std::io;

use serde::Serialize;

use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::store::{
    ArrivedMessage, Facts, Finish, Happening, MessageId, Scheduled, TaskInfo, TaskWaits, Wait,
};

/// The number of bytes that fill an answer of a store: 32 MiB.
///
/// The item that fills an answer is its last one, however long it is.
pub const ANSWER_BYTES: usize = 32 << 20;

/// The bytes that an item counts beside its payloads, which bound the number of small items as
/// well.
pub(crate) const ITEM_BYTES: usize = 512;

/// The maximum number of items in an answer.
pub const ANSWER_ITEMS: usize = ANSWER_BYTES / ITEM_BYTES;

/// The room that is left in an answer.
#[derive(Debug)]
pub struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(ANSWER_BYTES)
    }
}

impl Room {
    /// Takes this many bytes of the room, and returns `true`; returns `false` and takes nothing
    /// when the answer is full.
    pub fn take(&mut self, bytes: usize) -> bool {
        let has_room = self.0 > 0;
        self.0 = self.0.saturating_sub(bytes);
        has_room
    }

    /// Returns whether the answer is full.
    pub fn is_full(&self) -> bool {
        self.0 == 0
    }
}

/// An item of a list that a store returns in pages.
pub trait Listed {
    /// A place in the list.
    type Cursor: Clone + Debug + PartialEq;

    /// Returns the item's place in the list, after which the next page may begin.
    fn cursor(&self) -> Self::Cursor;

    /// Returns the number of bytes that the item takes of an answer.
    fn bytes(&self) -> usize;
}

/// A part of a list, in the list's order.
///
/// Only `next` says whether there is more. A page may be short because its items are long, or even
/// empty when a store has left out items that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T: Listed> {
    /// The items of the page.
    pub items: Vec<T>,
    /// The place after which the next page begins; `None` when this page is the last.
    pub next: Option<T::Cursor>,
}

impl<T: Listed> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<T: Listed> Default for Page<T> {
    /// Returns a last page without items.
    fn default() -> Self {
        Self { items: Vec::new(), next: None }
    }
}

impl<T: Listed> Page<T> {
    /// Fills a page, and takes the room of its answer.
    ///
    /// The function asks for one item more than there is room for, to know whether there is one.
    ///
    /// # Errors
    /// The errors of `next`.
    pub fn fill<E>(
        room: &mut Room,
        limit: usize,
        mut next: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Self, E> {
        let mut items: Vec<T> = Vec::new();
        while let Some(item) = next()? {
            if items.len() == limit || !room.take(item.bytes()) {
                return Ok(Self { next: items.last().map(T::cursor), items });
            }
            items.push(item);
        }
        Ok(Self { items, next: None })
    }

    /// Returns the first page of these items.
    pub fn of(items: impl IntoIterator<Item = T>, limit: usize) -> Self {
        let mut items = items.into_iter();
        let filled = Self::fill(&mut Room::default(), limit, || Ok::<_, Infallible>(items.next()));
        match filled {
            Ok(page) => page,
            Err(never) => match never {},
        }
    }

    /// Changes the items, which may become longer, and leaves the items without room to the next
    /// page.
    pub(crate) fn change(&mut self, mut change: impl FnMut(&mut T)) {
        let mut room = Room::default();
        let full = self.items.iter_mut().position(|item| {
            room.is_full() || {
                change(item);
                room.take(item.bytes());
                false
            }
        });
        if let Some(full) = full {
            self.items.truncate(full);
            self.next = self.items.last().map(T::cursor);
        }
    }
}

impl Facts {
    /// Returns whether the answer has room for something that has arrived, and sets `more` when it
    /// has none.
    pub fn has_room(&mut self, room: &mut Room, bytes: usize) -> bool {
        let has_room = room.take(bytes);
        self.more |= !has_room;
        has_room
    }
}

impl Finish {
    /// Returns the number of bytes that the end takes of an answer.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Completed(output) => output.as_str().len(),
            Self::Failed(failure) => json_bytes(failure),
            Self::Cancelled => 0,
        }
    }
}

impl Listed for TaskInfo {
    type Cursor = TaskId;

    fn cursor(&self) -> TaskId {
        self.task_id
    }

    fn bytes(&self) -> usize {
        let headers = if self.headers.is_empty() { 0 } else { json_bytes(&self.headers) };
        ITEM_BYTES
            + self.params.as_str().len()
            + self.output.as_ref().map_or(0, |output| output.as_str().len())
            + self.failure.as_ref().map_or(0, json_bytes)
            + headers
            + json_bytes(&self.retry)
    }
}

/// The end of a task.
impl Listed for (TaskId, Option<Finish>) {
    type Cursor = TaskId;

    fn cursor(&self) -> TaskId {
        self.0
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES + self.1.as_ref().map_or(0, Finish::bytes)
    }
}

/// The waits of a task.
impl Listed for TaskWaits {
    type Cursor = TaskId;

    fn cursor(&self) -> TaskId {
        self.0
    }

    fn bytes(&self) -> usize {
        let name = |name: &Name| name.as_str().len();
        let wait =
            |wait: &Wait| ITEM_BYTES + name(&wait.key.name) + wait.target.as_ref().map_or(0, name);
        self.1.iter().map(wait).sum()
    }
}

impl Listed for ArrivedMessage {
    type Cursor = MessageId;

    fn cursor(&self) -> MessageId {
        self.id
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES + self.payload.as_str().len()
    }
}

impl Listed for (u64, Happening) {
    type Cursor = u64;

    fn cursor(&self) -> u64 {
        self.0
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES + self.1.event.as_str().len()
    }
}

impl Listed for Scheduled {
    type Cursor = (Option<Timestamp>, Name);

    fn cursor(&self) -> Self::Cursor {
        (self.plan.next_at, self.name.clone())
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES + self.plan.definition.as_str().len()
    }
}

/// Returns the length of the value's JSON.
fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            self.0 += part.len();
            Ok(part.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A value that does not serialise has not come from a store.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}
