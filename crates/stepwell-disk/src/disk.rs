//! The FUSE file system behind a disk.
//!
//! Files whose names end with `-shm` hold memory that SQLite's connections share. The kernel maps
//! them from files of a memory file system, and does not pass them through this one. While the
//! kernel writes such a map back, it locks the process's memory, so this process could not answer
//! the kernel's requests. A power cut leaves nothing in these files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BackingId, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

use crate::recording::{FileId, Files, Operation, Recording, index, write};

/// The kernel asks each time, because files change without its knowledge when the disk is filled.
const NOT_KEPT: Duration = Duration::ZERO;

/// A failure that a disk is to report.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The number of the operation that fails, counted from 1. Writes, syncs, truncations and
    /// creations from now on count.
    pub nth: usize,
    /// Makes all later operations fail as well, until the disk is healed.
    pub lasts: bool,
    /// The error that the caller receives.
    pub errno: Errno,
}

/// A folder on a disk that records its operations, and fails on request.
///
/// Dropping the disk removes the folder. The files in the folder must be closed before.
pub struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    folder: TempDir,
}

impl Disk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// Fails when the machine has no FUSE, when its FUSE cannot pass files through (Linux 6.9 can),
    /// or when this user may not use that feature.
    pub fn mount() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("stepwell-disk").tempdir()?;
        let state = Arc::new(Mutex::new(State::new()));
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("stepwell-disk".into()), MountOption::NoAtime];
        let session = Session::new(FileSystem(state.clone()), folder.path(), &config)?.spawn()?;
        let disk = Self { state, session: Some(session), folder };
        File::create(disk.folder().join("probe-shm"))?;
        disk.fill(Files::new());
        Ok(disk)
    }

    /// Returns the path of the folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the files on the disk by these files, which count as synced, and begins a new
    /// recording. No file may be open.
    pub fn fill(&self, files: Files) {
        self.lock().fill(files);
    }

    /// Takes the files from the programs that have them open, as if these programs had died. Other
    /// programs still find what was written.
    pub fn disown(&self) {
        self.lock().disown();
    }

    /// Returns how many operations were recorded.
    pub fn position(&self) -> usize {
        self.lock().recording.len()
    }

    /// Returns the recording of all operations.
    pub fn recording(&self) -> Recording {
        self.lock().recording.clone()
    }

    /// Returns how many operations there were that a [`Fault`] counts.
    pub fn counted(&self) -> usize {
        self.lock().counted
    }

    /// Makes the disk fail, in place of an earlier fault.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some(Fault { nth: state.counted + fault.nth, ..fault });
    }

    /// Ends the fault, so that operations succeed again.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Returns how many operations have failed since the disk was filled.
    pub fn failures(&self) -> usize {
        self.lock().failures
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("{} stays mounted: {error}", self.folder.path().display());
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Each change of the state is one call, so the state is consistent after a panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file in memory behind a file that is passed through.
struct Shared {
    file: File,
    backing: BackingId,
}

struct State {
    names: BTreeMap<OsString, FileId>,
    /// The content as programs see it. The map includes files that have no name any more and may
    /// still be open.
    contents: BTreeMap<FileId, Vec<u8>>,
    /// The files behind shared memory.
    shared: BTreeMap<FileId, Shared>,
    changed: SystemTime,
    next: FileId,
    recording: Recording,
    fault: Option<Fault>,
    counted: usize,
    failures: usize,
}

impl State {
    fn new() -> Self {
        Self {
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            shared: BTreeMap::new(),
            changed: SystemTime::now(),
            next: u64::from(INodeNo::ROOT) + 1,
            recording: Recording::default(),
            fault: None,
            counted: 0,
            failures: 0,
        }
    }

    fn fill(&mut self, files: Files) {
        // A file id is never used twice, because the kernel may remember the content of an earlier
        // file.
        let mut filled = Self { next: self.next, ..Self::new() };
        for (name, content) in files {
            let file = filled.new_id();
            filled.names.insert(name, file);
            filled.contents.insert(file, content);
        }
        filled.recording.synced = filled.contents.clone();
        filled.recording.names = filled.names.clone();
        *self = filled;
    }

    fn disown(&mut self) {
        let named: Vec<_> = self.names.values().copied().collect();
        let renamed: BTreeMap<_, _> = named.into_iter().map(|file| (file, self.new_id())).collect();
        self.names.values_mut().for_each(|file| *file = renamed[file]);
        let contents = std::mem::take(&mut self.contents);
        self.contents = contents
            .into_iter()
            .filter_map(|(file, content)| Some((*renamed.get(&file)?, content)))
            .collect();
        self.shared.clear();
        self.recording.rename(&renamed);
    }

    fn new_id(&mut self) -> FileId {
        self.next += 1;
        self.next
    }

    fn record(&mut self, operation: Operation) {
        self.recording.operations.push(operation);
    }

    /// Counts an operation, and returns an error when the operation is to fail.
    fn may_fail(&mut self) -> Result<(), Errno> {
        self.counted += 1;
        match self.fault {
            Some(Fault { nth, lasts, errno })
                if self.counted == nth || (lasts && self.counted > nth) =>
            {
                self.failures += 1;
                Err(errno)
            }
            _ => Ok(()),
        }
    }

    fn attr(&self, file: FileId) -> Result<FileAttr, Errno> {
        if file == u64::from(INodeNo::ROOT) {
            return Ok(attr(INodeNo::ROOT, 0, FileType::Directory, self.changed));
        }
        let length = match self.shared.get(&file) {
            Some(shared) => shared.file.metadata()?.len(),
            None => self.contents.get(&file).ok_or(Errno::ENOENT)?.len() as u64,
        };
        Ok(attr(INodeNo(file), length, FileType::RegularFile, SystemTime::UNIX_EPOCH))
    }

    fn look_up(&self, name: &OsStr) -> Result<FileAttr, Errno> {
        self.attr(*self.names.get(name).ok_or(Errno::ENOENT)?)
    }

    /// Returns the file in memory behind a file that is passed through. The function calls `open`,
    /// which registers the file with the kernel, when the file is first opened.
    fn shared(
        &mut self,
        file: FileId,
        open: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Option<&Shared>, Errno> {
        let is_shared = self.names.iter().any(|(name, named)| *named == file && is_memory(name));
        if is_shared && !self.shared.contains_key(&file) {
            let behind = tempfile::tempfile_in("/dev/shm")?;
            let backing = open(&behind)?;
            self.shared.insert(file, Shared { file: behind, backing });
        }
        Ok(self.shared.get(&file))
    }

    fn create(&mut self, name: &OsStr) -> Result<FileAttr, Errno> {
        self.may_fail()?;
        let file = self.new_id();
        self.names.insert(name.to_owned(), file);
        self.contents.insert(file, Vec::new());
        self.changed = SystemTime::now();
        self.record(Operation::Create { name: name.to_owned(), file });
        self.attr(file)
    }

    fn unlink(&mut self, name: &OsStr) -> Result<(), Errno> {
        self.names.remove(name).ok_or(Errno::ENOENT)?;
        self.changed = SystemTime::now();
        self.record(Operation::Unlink { name: name.to_owned() });
        Ok(())
    }

    fn resize(&mut self, file: FileId, length: u64) -> Result<(), Errno> {
        if let Some(shared) = self.shared.get(&file) {
            return Ok(shared.file.set_len(length)?);
        }
        self.may_fail()?;
        self.contents.get_mut(&file).ok_or(Errno::ENOENT)?.resize(index(length), 0);
        self.record(Operation::Truncate { file, length });
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, size: u32) -> Result<&[u8], Errno> {
        let content = self.contents.get(&file).ok_or(Errno::ENOENT)?;
        let start = index(offset).min(content.len());
        let end = start.saturating_add(index(size.into())).min(content.len());
        Ok(&content[start..end])
    }

    fn write(&mut self, file: FileId, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let may = self.may_fail();
        // A write that fails has written half of its data.
        let written = if may.is_ok() { data } else { &data[..data.len() / 2] };
        write(self.contents.get_mut(&file).ok_or(Errno::ENOENT)?, offset, written);
        self.record(Operation::Write { file, offset, data: written.to_owned() });
        may
    }

    fn sync(&mut self, file: FileId) -> Result<(), Errno> {
        let may = self.may_fail();
        self.record(if may.is_ok() {
            Operation::Sync { file }
        } else {
            Operation::FailedSync { file }
        });
        may
    }

    fn sync_folder(&mut self) -> Result<(), Errno> {
        self.may_fail()?;
        self.record(Operation::SyncFolder);
        Ok(())
    }
}

fn is_memory(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(b"-shm")
}

fn attr(ino: INodeNo, size: u64, kind: FileType, changed: SystemTime) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: changed,
        kind,
        perm: if kind == FileType::Directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct FileSystem(Arc<Mutex<State>>);

impl Filesystem for FileSystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let unsupported =
            |_| io::Error::new(io::ErrorKind::Unsupported, "FUSE cannot pass files through");
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(unsupported)?;
        config.set_max_stack_depth(1).map(drop).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut state = lock(&self.0);
        match state.shared(ino.into(), |file| reply.open_backing(file)) {
            Ok(Some(shared)) => {
                reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &shared.backing);
            }
            Ok(None) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match lock(&self.0).look_up(name) {
            Ok(attr) => reply.entry(&NOT_KEPT, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).attr(ino.into()) {
            Ok(attr) => reply.attr(&NOT_KEPT, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let resized = size.map_or(Ok(()), |size| state.resize(ino.into(), size));
        match resized.and_then(|()| state.attr(ino.into())) {
            Ok(attr) => reply.attr(&NOT_KEPT, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = lock(&self.0);
        let created = state.create(name).and_then(|attr| {
            let shared = state.shared(attr.ino.into(), |file| reply.open_backing(file))?;
            Ok((attr, shared))
        });
        let (handle, flags) = (FileHandle(0), FopenFlags::empty());
        match created {
            Ok((attr, Some(Shared { backing, .. }))) => {
                reply.created_passthrough(&NOT_KEPT, &attr, Generation(0), handle, flags, backing);
            }
            Ok((attr, None)) => reply.created(&NOT_KEPT, &attr, Generation(0), handle, flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, lock(&self.0).unlink(name));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).read(ino.into(), offset, size) {
            Ok(data) => reply.data(data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).write(ino.into(), offset, data) {
            // The kernel asks for at most a `u32` of bytes.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    /// Answers that flushing is not supported, so that the kernel does not ask again. A process
    /// that ends closes its files. Without this answer it would wait for its own threads, which
    /// have ended.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, lock(&self.0).sync(ino.into()));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, lock(&self.0).sync_folder());
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (place, (name, file)) in (1..).zip(&lock(&self.0).names).skip(index(offset)) {
            if reply.add(INodeNo(*file), place, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
