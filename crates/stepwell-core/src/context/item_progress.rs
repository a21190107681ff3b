//! The progress of many items that are worked on one by one, with their results.
//!
//! Nothing here reads or writes a store. The caller that keeps the progress writes *chunks*:
//! compact JSON of some items. A chunk may hold any number of items. Chunks may be absorbed in any
//! order, and more than once. The items that ended since the last write are therefore the next
//! chunk, and many small chunks can become one.
//!
//! ```text
//!   {"total": 1000, "done": [[0, 99], [150, 150]], "results": [[100, ["a", "b"]]],
//!    "failures": [[7, {…}]]}
//! ```
//!
//! `done` lists ranges of items whose result is `null`, each with its first and last index.
//! `results` lists runs of other results, each with the index of its first one.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::journal::to_payload;
use crate::base::payload::Payload;

/// The rule for the other items when one fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorPolicy {
    /// Starts no other item, and fails the whole with the item's failure; the default.
    ///
    /// The item is not done: it is tried again when the work is taken up again.
    #[default]
    Stop,
    /// Gives the item up: it is done, with its failure, and not tried again. The others go on.
    Skip,
    /// Continues with the others, and adds the failure to the report.
    ///
    /// The item is not done: it is tried again when the work is taken up again.
    Collect,
}

/// The outcomes of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemsReport<R> {
    /// The results, by the items' indexes.
    pub results: BTreeMap<usize, R>,
    /// The failures, by the items' indexes.
    pub failures: BTreeMap<usize, Failure>,
    /// The numbers of items by their outcomes.
    pub counts: ItemCounts,
}

/// The numbers of items by their outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemCounts {
    /// The number of all items.
    pub total: usize,
    /// The number of items that have a result.
    pub succeeded: usize,
    /// The number of items that failed.
    pub failed: usize,
}

impl ItemCounts {
    /// Returns the number of items that have neither a result nor a failure.
    pub const fn unfinished(&self) -> usize {
        self.total.saturating_sub(self.succeeded + self.failed)
    }
}

/// The reason why an item or a chunk does not belong to a progress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// There is no such item.
    #[error("there is no item {index}: there are {total}, from 0")]
    NoSuchItem {
        /// The index.
        index: usize,
        /// The number of items.
        total: usize,
    },
    /// The chunk is of another number of items.
    #[error(
        "what was recorded is of {recorded} items, now there are {total}: give the items the same \
         order and number each time, or another name when they are others"
    )]
    OtherTotal {
        /// The number of items in the chunk.
        recorded: usize,
        /// The number of items of the progress.
        total: usize,
    },
    /// The chunk cannot be read.
    #[error("{start:?}… is no chunk of items: {reason}")]
    Broken {
        /// The first 64 characters of the chunk.
        start: String,
        /// The reason.
        reason: String,
    },
}

impl ItemError {
    fn broken(chunk: &Payload, reason: String) -> Self {
        Self::Broken { start: chunk.as_str().chars().take(64).collect(), reason }
    }
}

/// The items that are done, among many, with their results.
///
/// ```
/// # use stepwell_core::{ItemProgress, Payload};
/// let mut progress = ItemProgress::new(1_000);
/// for index in 0..500 {
///     progress.mark(index, Ok(Payload::null()))?;
/// }
/// assert_eq!(progress.to_chunk().as_str(), r#"{"total":1000,"done":[[0,499]]}"#);
///
/// let mut resumed = ItemProgress::new(1_000);
/// resumed.absorb(&progress.to_chunk())?;
/// assert_eq!(resumed.first_unfinished(), Some(500));
/// # Ok::<_, stepwell_core::ItemError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemProgress {
    total: usize,
    /// The items that are done, in ranges that do not touch: from the first index to the one after
    /// the last.
    done: BTreeMap<usize, usize>,
    /// The results other than `null`.
    results: BTreeMap<usize, Payload>,
    failures: BTreeMap<usize, Failure>,
}

#[derive(Serialize, Deserialize)]
struct Chunk {
    total: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    done: Vec<(usize, usize)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    results: Vec<(usize, Vec<Payload>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failures: Vec<(usize, Failure)>,
}

impl ItemProgress {
    /// Returns a progress of `total` items, none of which is done.
    pub const fn new(total: usize) -> Self {
        Self { total, done: BTreeMap::new(), results: BTreeMap::new(), failures: BTreeMap::new() }
    }

    /// Returns the progress that a chunk holds, of as many items as the chunk says.
    ///
    /// # Errors
    /// [`ItemError::Broken`].
    pub fn from_chunk(chunk: &Payload) -> Result<Self, ItemError> {
        #[derive(Deserialize)]
        struct Total {
            total: usize,
        }
        let Total { total } =
            chunk.decode().map_err(|error| ItemError::broken(chunk, error.to_string()))?;
        let mut progress = Self::new(total);
        progress.absorb(chunk)?;
        Ok(progress)
    }

    /// Marks an item as ended.
    ///
    /// A result stands, whatever is marked later. A failure is replaced by a later outcome.
    ///
    /// # Errors
    /// [`ItemError::NoSuchItem`].
    pub fn mark(
        &mut self,
        index: usize,
        outcome: Result<Payload, Failure>,
    ) -> Result<(), ItemError> {
        self.check(index)?;
        self.put(index, outcome);
        Ok(())
    }

    /// Returns whether the item has a result or a failure.
    pub fn is_done(&self, index: usize) -> bool {
        self.done.range(..=index).next_back().is_some_and(|(_, end)| index < *end)
    }

    /// Returns the first item that has neither a result nor a failure.
    pub fn first_unfinished(&self) -> Option<usize> {
        let first = self.done.get(&0).copied().unwrap_or(0);
        (first < self.total).then_some(first)
    }

    /// Returns the item's result or failure; `None` when it has neither.
    pub fn outcome(&self, index: usize) -> Option<Result<Payload, Failure>> {
        if let Some(failure) = self.failures.get(&index) {
            return Some(Err(failure.clone()));
        }
        let result = self.results.get(&index).cloned();
        self.is_done(index).then(|| Ok(result.unwrap_or_else(Payload::null)))
    }

    /// Returns whether no item has been marked.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Returns the numbers of items by their outcomes.
    pub fn counts(&self) -> ItemCounts {
        let done: usize = self.done.iter().map(|(start, end)| end - start).sum();
        let failed = self.failures.len();
        ItemCounts { total: self.total, succeeded: done - failed, failed }
    }

    /// Returns the whole progress as one chunk.
    pub fn to_chunk(&self) -> Payload {
        let mut results: Vec<(usize, Vec<Payload>)> = Vec::new();
        for (index, result) in &self.results {
            match results.last_mut() {
                Some((first, run)) if *first + run.len() == *index => run.push(result.clone()),
                _ => results.push((*index, vec![result.clone()])),
            }
        }
        let failures =
            self.failures.iter().map(|(index, failure)| (*index, failure.clone())).collect();
        let done = self.nulls().into_iter().map(|range| (range.start, range.end - 1)).collect();
        to_payload(&Chunk { total: self.total, done, results, failures })
    }

    /// Returns the whole progress in chunks of at most `limit` bytes, in the order of the items.
    ///
    /// The chunks are as few as this order allows. A single item that is larger than the limit is a
    /// chunk by itself.
    ///
    /// To merge chunks, absorb all of them and call this function.
    pub fn to_chunks(&self, limit: usize) -> Vec<Payload> {
        let nulls = self.nulls().into_iter().map(|range| (range.start, Piece::Done(range.end)));
        let results = self.results.iter().map(|(index, result)| (*index, Piece::Result(result)));
        let failures =
            self.failures.iter().map(|(index, failure)| (*index, Piece::Failure(failure)));
        let mut pieces: Vec<_> = nulls.chain(results).chain(failures).collect();
        pieces.sort_unstable_by_key(|(start, _)| *start);

        let frame = r#"{"total":,"done":[],"results":[],"failures":[]}"#.len() + digits(self.total);
        let mut chunks = Vec::new();
        let (mut part, mut bytes) = (Self::new(self.total), frame);
        for (start, piece) in pieces {
            // A piece adds at most itself, its indexes, and `[,[]],` around it.
            let more = 6 + digits(start) + piece.bytes();
            if bytes + more > limit && !part.is_empty() {
                chunks.push(std::mem::replace(&mut part, Self::new(self.total)).to_chunk());
                bytes = frame;
            }
            bytes += more;
            match piece {
                Piece::Done(end) => part.add(start..end),
                Piece::Result(result) => {
                    part.add(start..start + 1);
                    part.results.insert(start, result.clone());
                }
                Piece::Failure(failure) => {
                    part.add(start..start + 1);
                    part.failures.insert(start, failure.clone());
                }
            }
        }
        if !part.is_empty() {
            chunks.push(part.to_chunk());
        }
        chunks
    }

    /// Adds the items of a chunk, as [`ItemProgress::mark`] would.
    ///
    /// # Errors
    /// [`ItemError::OtherTotal`], [`ItemError::Broken`]; in both cases nothing of the chunk was
    /// added.
    pub fn absorb(&mut self, chunk: &Payload) -> Result<(), ItemError> {
        let broken = |reason: String| ItemError::broken(chunk, reason);
        let read: Chunk = chunk.decode().map_err(|error| broken(error.to_string()))?;
        if read.total != self.total {
            return Err(ItemError::OtherTotal { recorded: read.total, total: self.total });
        }
        let mut ends = Vec::from_iter(read.failures.iter().map(|(index, _)| Some(*index)));
        ends.extend(read.done.iter().map(|(first, last)| (first <= last).then_some(*last)));
        ends.extend(
            read.results.iter().map(|(first, run)| first.checked_add(run.len().checked_sub(1)?)),
        );
        if !ends.iter().all(|end| end.is_some_and(|end| end < self.total)) {
            return Err(broken("it has items that there cannot be".into()));
        }
        let results = read.results.into_iter().flat_map(|(first, run)| (first..).zip(run));
        self.take(
            read.done.into_iter().map(|(first, last)| first..last + 1),
            results,
            read.failures,
        );
        Ok(())
    }

    /// Adds another progress of the same items, as [`ItemProgress::mark`] would.
    pub(crate) fn merge(&mut self, other: Self) {
        self.take(other.nulls(), other.results, other.failures);
    }

    fn take(
        &mut self,
        nulls: impl IntoIterator<Item = Range<usize>>,
        results: impl IntoIterator<Item = (usize, Payload)>,
        failures: impl IntoIterator<Item = (usize, Failure)>,
    ) {
        for range in nulls {
            let failed: Vec<_> =
                self.failures.range(range.clone()).map(|(index, _)| *index).collect();
            failed.iter().for_each(|index| _ = self.failures.remove(index));
            self.add(range);
        }
        results.into_iter().for_each(|(index, result)| self.put(index, Ok(result)));
        failures.into_iter().for_each(|(index, failure)| self.put(index, Err(failure)));
    }

    fn put(&mut self, index: usize, outcome: Result<Payload, Failure>) {
        if self.is_done(index) && self.failures.remove(&index).is_none() {
            return;
        }
        self.add(index..index + 1);
        match outcome {
            Ok(result) if is_null(&result) => {}
            Ok(result) => _ = self.results.insert(index, result),
            Err(failure) => _ = self.failures.insert(index, failure),
        }
    }

    fn check(&self, index: usize) -> Result<(), ItemError> {
        if index < self.total {
            Ok(())
        } else {
            Err(ItemError::NoSuchItem { index, total: self.total })
        }
    }

    /// Joins the range with the ranges that it overlaps or touches.
    fn add(&mut self, range: Range<usize>) {
        let Range { mut start, mut end } = range;
        while let Some((first, last)) =
            self.done.range(..=end).next_back().map(|(first, last)| (*first, *last))
            && last >= start
        {
            self.done.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.done.insert(start, end);
    }

    /// Returns the ranges of items whose result is `null`.
    fn nulls(&self) -> Vec<Range<usize>> {
        let mut others: Vec<_> = self.results.keys().chain(self.failures.keys()).copied().collect();
        others.sort_unstable();
        let mut others = others.into_iter().peekable();
        let mut nulls = Vec::new();
        for (start, end) in &self.done {
            let mut start = *start;
            while let Some(other) = others.next_if(|other| other < end) {
                nulls.push(start..other);
                start = other + 1;
            }
            nulls.push(start..*end);
        }
        nulls.retain(|range| !range.is_empty());
        nulls
    }
}

/// A part of a progress that chunks do not divide.
enum Piece<'a> {
    /// A range of `null` results, up to this index, exclusive.
    Done(usize),
    Result(&'a Payload),
    Failure(&'a Failure),
}

impl Piece<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Done(end) => digits(*end),
            Self::Result(result) => result.as_str().len(),
            Self::Failure(failure) => to_payload(failure).as_str().len(),
        }
    }
}

fn is_null(payload: &Payload) -> bool {
    payload.as_str() == "null"
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::failure::FailureKind;

    const TOTAL: usize = 40;

    fn outcomes() -> impl Strategy<Value = Vec<(usize, Result<Payload, Failure>)>> {
        let result = prop_oneof![
            3 => Just(Payload::null()),
            1 => "[a-z\"é]{0,30}".prop_map(|text| Payload::encode(&text, 1_000).unwrap()),
        ];
        let failure = "[a-z]{0,9}".prop_map(|text| Failure::new(FailureKind::Error, text));
        let outcome = prop_oneof![4 => result.prop_map(Ok), 1 => failure.prop_map(Err)];
        proptest::collection::vec((0..TOTAL, outcome), 0..80)
    }

    fn marked(outcomes: &[(usize, Result<Payload, Failure>)]) -> ItemProgress {
        let mut progress = ItemProgress::new(TOTAL);
        for (index, outcome) in outcomes {
            progress.mark(*index, outcome.clone()).unwrap();
        }
        progress
    }

    fn absorbed(chunks: &[Payload]) -> ItemProgress {
        let mut progress = ItemProgress::new(TOTAL);
        for chunk in chunks {
            progress.absorb(chunk).unwrap();
        }
        progress
    }

    /// A merge took minutes when each range of results looked through all failures.
    #[test]
    fn many_failures_between_results_are_merged_in_time() {
        let total = 100_000;
        let mut progress = ItemProgress::new(total);
        for index in 0..total {
            let failed = Err(Failure::new(FailureKind::Error, "no"));
            progress
                .mark(index, if index % 2 == 0 { failed } else { Ok(Payload::null()) })
                .unwrap();
        }
        let begun = std::time::Instant::now();
        let mut merged = progress.clone();
        merged.merge(progress.clone());
        assert_eq!(merged, progress);
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn progress_is_what_a_map_of_outcomes_says(outcomes in outcomes()) {
            let progress = marked(&outcomes);
            let mut model: BTreeMap<usize, Result<Payload, Failure>> = BTreeMap::new();
            for (index, outcome) in outcomes {
                if !matches!(model.get(&index), Some(Ok(_))) {
                    model.insert(index, outcome);
                }
            }
            for index in 0..TOTAL {
                prop_assert_eq!(progress.outcome(index), model.get(&index).cloned());
                prop_assert_eq!(progress.is_done(index), model.contains_key(&index));
            }
            let unfinished = (0..TOTAL).find(|index| !model.contains_key(index));
            prop_assert_eq!(progress.first_unfinished(), unfinished);
            let succeeded = model.values().filter(|outcome| outcome.is_ok()).count();
            let counts = ItemCounts { total: TOTAL, succeeded, failed: model.len() - succeeded };
            prop_assert_eq!(progress.counts(), counts);
            prop_assert_eq!(counts.unfinished(), TOTAL - model.len());
        }

        #[test]
        fn chunks_hold_everything_and_keep_their_limit(
            outcomes in outcomes(),
            limit in 0..2_000_usize,
        ) {
            let progress = marked(&outcomes);
            prop_assert_eq!(&absorbed(&[progress.to_chunk()]), &progress);
            prop_assert_eq!(&ItemProgress::from_chunk(&progress.to_chunk()).unwrap(), &progress);
            let chunks = progress.to_chunks(limit);
            prop_assert_eq!(&absorbed(&chunks), &progress);
            for chunk in &chunks {
                let parts = absorbed(std::slice::from_ref(chunk)).to_chunks(0).len();
                prop_assert!(chunk.as_str().len() <= limit || parts == 1);
            }
            let mut backwards = [chunks.clone(), chunks].concat();
            backwards.reverse();
            prop_assert_eq!(&absorbed(&backwards), &progress);
        }

        #[test]
        fn chunks_of_parts_come_to_the_same_as_the_whole(
            parts in proptest::collection::vec(outcomes(), 0..5),
        ) {
            let chunks: Vec<_> = parts.iter().map(|part| marked(part).to_chunk()).collect();
            let merged = absorbed(&chunks);
            prop_assert_eq!(&absorbed(&merged.to_chunks(200)), &merged);
            // A result in an earlier part stands when the item failed in a later one.
            let whole = marked(&parts.concat());
            prop_assert_eq!(merged.counts(), whole.counts());
            for index in 0..TOTAL {
                prop_assert_eq!(merged.outcome(index), whole.outcome(index));
            }
        }
    }

    #[test]
    fn ranges_are_compact() {
        let mut progress = ItemProgress::new(1_000_000);
        for index in (0..400_000).rev().chain(600_000..1_000_000).filter(|index| *index != 7) {
            progress.mark(index, Ok(Payload::null())).unwrap();
        }
        progress.mark(7, Err(Failure::new(FailureKind::Error, "no"))).unwrap();
        for (index, text) in [(500_000, "a"), (500_001, "b"), (500_003, "c")] {
            progress.mark(index, Payload::encode(text, 9).map_err(|_| unreachable!())).unwrap();
        }
        assert_eq!(
            progress.to_chunk().as_str(),
            concat!(
                r#"{"total":1000000,"done":[[0,6],[8,399999],[600000,999999]],"#,
                r#""results":[[500000,["a","b"]],[500003,["c"]]],"#,
                r#""failures":[[7,{"kind":"error","message":"no"}]]}"#,
            )
        );
    }

    #[test]
    fn what_is_no_chunk_of_these_items_is_said_and_changes_nothing() {
        let mut progress = marked(&[(3, Ok(Payload::null()))]);
        let before = progress.clone();
        for text in [
            "",
            "null",
            "{}",
            r#"{"total":40,"done":[[0,40]]}"#,
            r#"{"total":40,"done":[[5,4]]}"#,
            r#"{"total":40,"results":[[39,[1,2]]]}"#,
            r#"{"total":40,"results":[[18446744073709551615,[1,2]]]}"#,
            r#"{"total":40,"results":[[0,[]]]}"#,
            r#"{"total":40,"done":[[0,1]],"failures":[[40,{"kind":"error","message":""}]]}"#,
        ] {
            let error = progress.absorb(&Payload::from_json(text)).unwrap_err();
            assert!(matches!(error, ItemError::Broken { .. }), "{text}: {error}");
        }
        let error = progress.absorb(&ItemProgress::new(41).to_chunk()).unwrap_err();
        assert_eq!(error, ItemError::OtherTotal { recorded: 41, total: 40 });
        let error = progress.mark(40, Ok(Payload::null())).unwrap_err();
        assert_eq!(error, ItemError::NoSuchItem { index: 40, total: 40 });
        assert_eq!(progress, before);
    }
}
