//! The operations of a disk, and what a power cut may leave of them.

use std::collections::BTreeMap;
use std::ffi::OsString;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The part of a write that reaches the disk as a whole or not at all, in bytes.
const SECTOR: u64 = 512;

/// The contents of a folder: the content of each file, by its name.
pub type Files = BTreeMap<OsString, Vec<u8>>;

/// The identity of a file, independent of its name in the folder.
pub(crate) type FileId = u64;

/// An operation that the disk received.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Create {
        name: OsString,
        file: FileId,
    },
    Unlink {
        name: OsString,
    },
    Write {
        file: FileId,
        offset: u64,
        data: Vec<u8>,
    },
    Truncate {
        file: FileId,
        length: u64,
    },
    Sync {
        file: FileId,
    },
    /// A sync that failed. The data that was written before it and not synced is never synced,
    /// because the kernel takes it for written and a later sync does not try it again. A file's
    /// length is different. A file system keeps lengths in its journal, which it writes in order or
    /// not at all, so the next sync that succeeds syncs the truncations.
    FailedSync {
        file: FileId,
    },
    /// A sync of the folder. Only this operation syncs names. (ext4 and XFS sync the name of a new
    /// file with the file, but do not guarantee it.) A sync of the folder that fails has no effect,
    /// and the next one syncs all names.
    SyncFolder,
}

/// The part of the unsynced data that a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// No unsynced data survives.
    None,
    /// All unsynced data survives.
    All,
    /// A random part survives, which is drawn from this seed.
    Some(u64),
}

/// All operations of a disk since it was last filled.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    pub(crate) synced: BTreeMap<FileId, Vec<u8>>,
    pub(crate) names: BTreeMap<OsString, FileId>,
    pub(crate) operations: Vec<Operation>,
}

/// The fate of a change in a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The change survives only when it is synced.
    Unsynced,
    /// The change may survive, and no sync concerns it any more.
    Adrift,
    /// The change survives.
    Durable,
}

enum FileChange<'a> {
    /// A write to a part of one sector.
    Write(u64, &'a [u8]),
    Truncate(u64),
}

enum NameChange<'a> {
    Create(&'a OsString, FileId),
    Unlink(&'a OsString),
}

/// Changes in their order.
struct Changes<C>(Vec<(C, Fate)>);

impl<C> Default for Changes<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> Changes<C> {
    fn push(&mut self, change: C) {
        self.0.push((change, Fate::Unsynced));
    }

    fn settle(&mut self, fate: Fate, concerns: impl Fn(&C) -> bool) {
        for (change, before) in &mut self.0 {
            if *before == Fate::Unsynced && concerns(change) {
                *before = fate;
            }
        }
    }
}

/// The random decisions about what survives.
struct Lots {
    survivors: Survivors,
    drawn: StdRng,
    share: f64,
}

impl Lots {
    fn new(survivors: Survivors) -> Self {
        let seed = match survivors {
            Survivors::Some(seed) => seed,
            Survivors::None | Survivors::All => 0,
        };
        let mut drawn = StdRng::seed_from_u64(seed);
        let share = [0.1, 0.5, 0.9][drawn.random_range(0..3)];
        Self { survivors, drawn, share }
    }

    fn survives(&mut self, fate: Fate) -> bool {
        fate == Fate::Durable
            || match self.survivors {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Some(_) => self.drawn.random_bool(self.share),
            }
    }

    /// Returns the byte that fills a part of a file that has grown and was not written. File
    /// systems promise nothing about such a part.
    fn unwritten(&mut self) -> Option<u8> {
        let drawn =
            matches!(self.survivors, Survivors::Some(_)).then(|| self.drawn.random_range(0..4));
        match drawn {
            Some(0) => Some(0),
            Some(1) => Some(0xa5),
            _ => None,
        }
    }
}

impl Recording {
    /// Returns how many operations there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Returns whether there are no operations.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Returns whether each operation that a [`Fault`](crate::Fault) counts is a write. The result
    /// is right while no operation has failed.
    pub fn writes(&self) -> Vec<bool> {
        let counted = self
            .operations
            .iter()
            .filter(|operation| !matches!(operation, Operation::Unlink { .. }));
        counted.map(|operation| matches!(operation, Operation::Write { .. })).collect()
    }

    /// Replaces the ids of files.
    pub(crate) fn rename(&mut self, renamed: &BTreeMap<FileId, FileId>) {
        let rename = |file: &mut FileId| *file = *renamed.get(file).unwrap_or(file);
        let synced = std::mem::take(&mut self.synced);
        self.synced = synced
            .into_iter()
            .map(|(file, content)| (*renamed.get(&file).unwrap_or(&file), content))
            .collect();
        self.names.values_mut().for_each(rename);
        for operation in &mut self.operations {
            match operation {
                Operation::Create { file, .. }
                | Operation::Write { file, .. }
                | Operation::Truncate { file, .. }
                | Operation::Sync { file }
                | Operation::FailedSync { file } => rename(file),
                Operation::Unlink { .. } | Operation::SyncFolder => {}
            }
        }
    }

    /// Returns the files after a power cut that follows the first `operations` operations.
    pub fn after_power_cut(&self, operations: usize, survivors: Survivors) -> Files {
        let mut names = Changes::default();
        let mut files: BTreeMap<FileId, Changes<FileChange<'_>>> = BTreeMap::new();
        for operation in self.operations.iter().take(operations) {
            match operation {
                Operation::Create { name, file } => names.push(NameChange::Create(name, *file)),
                Operation::Unlink { name } => names.push(NameChange::Unlink(name)),
                Operation::Write { file, offset, data } => {
                    let changes = files.entry(*file).or_default();
                    for (offset, part) in sectors(*offset, data) {
                        changes.push(FileChange::Write(offset, part));
                    }
                }
                Operation::Truncate { file, length } => {
                    files.entry(*file).or_default().push(FileChange::Truncate(*length));
                }
                Operation::Sync { file } => {
                    files.entry(*file).or_default().settle(Fate::Durable, |_| true);
                }
                Operation::FailedSync { file } => {
                    let is_written =
                        |change: &FileChange<'_>| matches!(change, FileChange::Write(..));
                    files.entry(*file).or_default().settle(Fate::Adrift, is_written);
                }
                Operation::SyncFolder => names.settle(Fate::Durable, |_| true),
            }
        }
        let mut lots = Lots::new(survivors);
        let mut found = self.names.clone();
        for (change, fate) in names.0 {
            match change {
                _ if !lots.survives(fate) => {}
                NameChange::Create(name, file) => _ = found.insert(name.clone(), file),
                NameChange::Unlink(name) => _ = found.remove(name),
            }
        }
        let mut content = |file| {
            let synced = self.synced.get(&file).cloned().unwrap_or_default();
            left(synced, files.remove(&file).unwrap_or_default(), &mut lots)
        };
        found.into_iter().map(|(name, file)| (name, content(file))).collect()
    }
}

/// Returns the content of a file after a power cut.
fn left(mut content: Vec<u8>, changes: Changes<FileChange<'_>>, lots: &mut Lots) -> Vec<u8> {
    let mut lost_end = 0;
    for (change, fate) in changes.0 {
        match change {
            FileChange::Write(offset, part) if lots.survives(fate) => {
                write(&mut content, offset, part);
            }
            FileChange::Write(offset, part) => lost_end = lost_end.max(index(offset) + part.len()),
            FileChange::Truncate(length) if lots.survives(fate) => {
                content.resize(index(length), 0);
                lost_end = lost_end.min(index(length));
            }
            FileChange::Truncate(_) => {}
        }
    }
    if lost_end > content.len()
        && let Some(filling) = lots.unwritten()
    {
        content.resize(lost_end, filling);
    }
    content
}

/// Writes into a file, which grows as far as necessary.
pub(crate) fn write(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (index(offset), index(offset) + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

/// Returns an offset as an index into a file in memory.
pub(crate) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Splits a write at the boundaries of sectors.
fn sectors(mut offset: u64, mut data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let room = index(SECTOR - offset % SECTOR);
        let (part, rest) = data.split_at(room.min(data.len()));
        let at = offset;
        (offset, data) = (offset + part.len() as u64, rest);
        (!part.is_empty()).then_some((at, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(operations: Vec<Operation>) -> Recording {
        let names = [("old".into(), 1)].into();
        Recording { synced: [(1, vec![b'o'; 1024])].into(), names, operations }
    }

    fn over_the_old(fill: u8) -> Operation {
        Operation::Write { file: 1, offset: 0, data: vec![fill; 1024] }
    }

    /// Returns all contents of the old file over some hundred seeds.
    fn outcomes(recording: &Recording) -> std::collections::BTreeSet<(u8, u8)> {
        let left = |seed| recording.after_power_cut(recording.len(), Survivors::Some(seed));
        let files = (0..200).map(|seed| left(seed).remove(&OsString::from("old")).unwrap());
        files
            .map(|file| {
                let [first, second] = [&file[..512], &file[512..]];
                assert!(first.iter().all(|byte| *byte == first[0]), "a sector is torn");
                (first[0], second[0])
            })
            .collect()
    }

    #[test]
    fn each_sector_is_old_or_new_until_it_is_synced() {
        let unsynced = recording(vec![over_the_old(b'n')]);
        let all = [(b'n', b'n'), (b'n', b'o'), (b'o', b'n'), (b'o', b'o')];
        assert_eq!(outcomes(&unsynced), all.into());
        let synced = recording(vec![over_the_old(b'n'), Operation::Sync { file: 1 }]);
        assert_eq!(outcomes(&synced), [(b'n', b'n')].into());
        let before = synced.after_power_cut(1, Survivors::None);
        assert_eq!(before[&OsString::from("old")], [b'o'; 1024]);
    }

    #[test]
    fn what_a_failed_sync_has_lost_no_later_sync_brings_back() {
        let sync = Operation::Sync { file: 1 };
        let lost =
            recording(vec![over_the_old(b'n'), Operation::FailedSync { file: 1 }, sync.clone()]);
        assert_eq!(outcomes(&lost).len(), 4);
        let again = [lost.operations, vec![over_the_old(b'm'), sync]].concat();
        assert_eq!(outcomes(&recording(again)), [(b'm', b'm')].into());
    }

    #[test]
    fn truncations_are_synced_by_the_next_sync_that_succeeds() {
        let grow = Operation::Write { file: 1, offset: 1024, data: vec![b'n'; 1024] };
        let cut_off = Operation::Truncate { file: 1, length: 512 };
        let lost = recording(vec![
            grow,
            cut_off,
            Operation::FailedSync { file: 1 },
            Operation::Sync { file: 1 },
        ]);
        let lengths = |operations| {
            let left = |seed| lost.after_power_cut(operations, Survivors::Some(seed));
            let lengths = (0..200).map(|seed| left(seed)[&OsString::from("old")].len());
            lengths.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(lengths(3), [512, 1024, 1536, 2048].into());
        assert_eq!(lengths(4), [512].into());
    }

    #[test]
    fn names_last_when_their_folder_is_synced() {
        let create = Operation::Create { name: "new".into(), file: 2 };
        let unlink = Operation::Unlink { name: "old".into() };
        let changed =
            recording(vec![create, unlink, Operation::Sync { file: 2 }, Operation::SyncFolder]);
        let names = |operations, survivors| {
            let left = changed.after_power_cut(operations, survivors);
            left.into_keys().map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(3, Survivors::None), ["old"]);
        assert_eq!(names(3, Survivors::All), ["new"]);
        assert_eq!(names(4, Survivors::None), ["new"]);
    }
}
