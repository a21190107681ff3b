//! A key-value store in a folder, with a file for each key.
//!
//! A value is written to a temporary file, synced, and renamed over the old file; then the folder
//! is synced. After a crash, the file therefore has the old value or the new one. Writers of one
//! key, in any process, exclude each other by a lock on one of 64 files. Readers take no lock. A
//! process that is paused within its write (some milliseconds) blocks other writers, which fail
//! after 10 seconds with an error.
//!
//! The first line of a file is the time at which the value expires (microseconds since 1970, or
//! `-`). The rest of the file is the value.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Timestamp, after, async_trait};
use tempfile::NamedTempFile;

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "the folder";
/// The number of locks. Writers of keys that share a lock wait for each other; more locks than a
/// disk can sync at a time are of no use.
const LOCKS: usize = 64;
/// The maximum length of a file's name, in bytes. The rest of a longer name is in a folder of that
/// name, because file systems limit names to 255 bytes.
const NAME_BYTES: usize = 200;
const GOES_ON: char = '+';
/// The time for which a writer waits for a lock, and the interval of its tries.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A key-value store in a folder on a local disk of one machine. Several processes may share it.
#[derive(Clone, Debug)]
pub struct Files {
    folder: Arc<Path>,
}

impl Files {
    /// Opens the folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the folder cannot be created.
    pub async fn open(folder: impl Into<PathBuf>) -> Result<Self, KeyValueError> {
        let files = Self { folder: folder.into().into() };
        files
            .run("open", |folder| {
                fs::create_dir_all(folder.join(".locks"))?;
                sync_folder(folder)
            })
            .await?;
        Ok(files)
    }

    /// Runs blocking work on a thread for such work.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        let folder = self.folder.clone();
        let failed = |reason: String| {
            KeyValueError::failed(STORE, action, format!("{}: {reason}", self.folder.display()))
        };
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(done) => done.map_err(|error| failed(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

#[async_trait]
impl KeyValueStore for Files {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        let key = key.to_owned();
        self.run("get", move |folder| read(&path(folder, &key))).await
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.run("set", move |folder| {
            let _lock = lock(folder, &key)?;
            write(&path(folder, &key), &value, ttl)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        let key = key.to_owned();
        self.run("delete", move |folder| {
            let _lock = lock(folder, &key)?;
            let path = path(folder, &key);
            let was_there = read(&path)?.is_some();
            remove(&path)?;
            Ok(was_there)
        })
        .await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.get(key).await?.is_some())
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let pattern = Pattern::new(pattern);
        self.run("list keys", move |folder| {
            let mut keys = Vec::new();
            list(folder, "", &mut |key| {
                if !pattern.matches(&key) {
                    return Ok(());
                }
                let path = path(folder, &key);
                if read(&path)?.is_some() {
                    keys.push(key);
                    return Ok(());
                }
                // The value is expired. No other code removes it.
                let _lock = lock(folder, &key)?;
                if read(&path)?.is_none() { remove(&path) } else { Ok(()) }
            })?;
            Ok(keys)
        })
        .await
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        let key = key.to_owned();
        let (expected, new) = (expected.map(str::to_owned), new.map(str::to_owned));
        self.run("compare and set", move |folder| {
            let _lock = lock(folder, &key)?;
            let path = path(folder, &key);
            if read(&path)? != expected {
                return Ok(false);
            }
            match new {
                Some(value) => write(&path, &value, ttl)?,
                None => remove(&path)?,
            }
            Ok(true)
        })
        .await
    }
}

/// Locks the key against other writers, until the returned file is dropped.
fn lock(folder: &Path, key: &str) -> io::Result<File> {
    let number = key.bytes().fold(0, |sum: usize, byte| (sum * 31 + usize::from(byte)) % LOCKS);
    let path = folder.join(".locks").join(number.to_string());
    let file = File::options().create(true).append(true).open(&path)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(TryLockError::WouldBlock) => {
                let reason = format!(
                    "another process has held {} for {PATIENCE:?}: let it go on if it is paused, \
                     or end it",
                    path.display()
                );
                return Err(io::Error::new(ErrorKind::TimedOut, reason));
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let foreign = || {
        let reason = format!("{} is not a file of this store: use another folder", path.display());
        io::Error::new(ErrorKind::InvalidData, reason)
    };
    let (ends, value) = text.split_once('\n').ok_or_else(foreign)?;
    let is_over = match ends {
        "-" => false,
        micros => {
            micros.parse::<i64>().map_err(|_| foreign())? <= Timestamp::now().as_microsecond()
        }
    };
    Ok((!is_over).then(|| value.to_owned()))
}

fn write(path: &Path, value: &str, ttl: Option<Duration>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    make_folders(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    match ttl {
        Some(ttl) => writeln!(file, "{}", after(Timestamp::now(), ttl).as_microsecond())?,
        None => writeln!(file, "-")?,
    }
    file.write_all(value.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path.parent().unwrap_or(path)),
    }
}

/// Creates the folders for the parts of a long name, and syncs each in the folder above it.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(folder);
    make_folders(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

/// Makes the names in a folder durable, on systems where this is a separate operation.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Returns the path of a key's file. Lowercase letters, digits, `-` and `_` stand for themselves,
/// and so does a dot that is not the first character. All other bytes are `%` and two hex digits.
/// Capital letters are among these bytes, because some file systems ignore the case of names.
fn path(folder: &Path, key: &str) -> PathBuf {
    let mut path = folder.to_owned();
    let mut name = String::new();
    for (i, byte) in key.bytes().enumerate() {
        if name.len() >= NAME_BYTES {
            name.push(GOES_ON);
            path.push(std::mem::take(&mut name));
        }
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'.' if i > 0 && !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    // The empty key has the name `%`, which no other key has.
    path.join(if name.is_empty() { "%" } else { &name })
}

/// Returns the part of a key that a file's name stands for, or `None` when this store made no such
/// name.
fn decode(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = name.bytes();
    if name == "%" {
        return Some(bytes);
    }
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(bytes)
}

/// Calls `found` with each key, including the keys of expired values.
fn list(
    folder: &Path,
    before: &str,
    found: &mut dyn FnMut(String) -> io::Result<()>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // Names of locks and of incomplete files begin with a dot.
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if let Some(start) = name.strip_suffix(GOES_ON) {
            list(&entry.path(), &format!("{before}{start}"), found)?;
        } else if let Some(key) =
            decode(&format!("{before}{name}")).and_then(|key| String::from_utf8(key).ok())
        {
            found(key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key_of(path: &Path) -> Option<String> {
        let name: String = path
            .strip_prefix("/store")
            .ok()?
            .iter()
            .map(|part| part.to_str().unwrap().trim_end_matches(GOES_ON))
            .collect();
        String::from_utf8(decode(&name)?).ok()
    }

    proptest! {
        #[test]
        fn every_key_has_a_name_that_is_safe_and_its_own(key in "(\\PC|[./A-Zé%+-]){0,300}") {
            let path = path(Path::new("/store"), &key);
            prop_assert_eq!(key_of(&path), Some(key));
            for name in path.strip_prefix("/store").unwrap() {
                let name = name.to_str().unwrap();
                prop_assert!(!name.starts_with('.') && name.len() < 210, "{}", name);
                let is_safe = |byte: u8| {
                    byte.is_ascii_lowercase()
                        || byte.is_ascii_digit()
                        || b"-_.%+".contains(&byte)
                };
                prop_assert!(name.bytes().all(is_safe));
            }
        }
    }
}
