//! The loading of a checkpoint: it takes the lease, and runs the cleanups of the last process.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use stepwell_core::{BoxFuture, Key, Name, Timestamp, after, until};
use uuid::Uuid;

use crate::checkpoint::Checkpoint;
use crate::cleanup::{Runner, run_all, runner};
use crate::error::CheckpointError;
use crate::key_value::KeyValueStore;
use crate::ledger::{Ledger, Memory, now};
use crate::record::{Head, Owner, damaged, head_key, segment_key};

/// The default length of a lease.
const LEASE: Duration = Duration::from_secs(30);

/// A checkpoint that is about to be loaded, made by [`Checkpoint::load`]: set options, then await
/// it.
#[must_use = "a checkpoint is not loaded until this is awaited"]
pub struct Load {
    store: Arc<dyn KeyValueStore>,
    id: String,
    owner: Owner,
    lease: Duration,
    runners: BTreeMap<String, Runner>,
}

impl Load {
    pub(crate) fn new(store: Arc<dyn KeyValueStore>, id: &str) -> Self {
        let owner =
            Owner { id: Uuid::new_v4(), name: this_process(), until: Timestamp::UNIX_EPOCH };
        Self { store, id: id.to_owned(), owner, lease: LEASE, runners: BTreeMap::new() }
    }

    /// Registers the function that runs the cleanups of a name with their payloads. All names that
    /// the code passes to [`Checkpoint::cleanup`] must be registered here, and so must the names
    /// that earlier versions of the code used.
    pub fn on_cleanup<P, F, Fut>(mut self, name: &str, run: F) -> Self
    where
        P: DeserializeOwned + Send,
        F: Fn(P) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.runners.insert(name.to_owned(), runner(run));
        self
    }

    /// Sets the lease: the time after which another process may load the checkpoint, if this
    /// process shows no sign of life. A live process renews its lease. The lease uses the clocks of
    /// the machines, which must agree to a small part of the lease. Default: 30 seconds; at least
    /// 10 milliseconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        // With a shorter lease, the process would do nothing but renew it.
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Sets the name of the owner that other processes see. Default: the process's id and the
    /// machine's name.
    pub fn owner(mut self, name: impl Into<String>) -> Self {
        self.owner.name = name.into();
        self
    }

    async fn load(mut self) -> Result<Checkpoint, CheckpointError> {
        Name::new(&self.id)?;
        let (head, text, memory) = self.claim().await?;
        let ledger = Arc::new(Ledger::new(self.store, self.lease, head, text, memory));
        let renewing = tokio::spawn(ledger.clone().keep_renewing());
        let checkpoint = Checkpoint::new(ledger, self.runners, renewing);
        let cleaned = run_all(checkpoint.ledger(), checkpoint.runners()).await?;
        Ok(checkpoint.with_cleaned(cleaned))
    }

    /// Takes the lease of the checkpoint. Nothing is written until all that is stored has been read
    /// and checked.
    async fn claim(&mut self) -> Result<(Head, String, Memory), CheckpointError> {
        let key = head_key(&self.id);
        let mut missing_before = None;
        loop {
            let found = self.store.get(&key).await?;
            let mut head = match &found {
                Some(text) => Head::parse(&self.id, text)?,
                None => Head::new(&self.id, now()),
            };
            if let (Some(completed), Some(text)) = (&head.completed, &found) {
                finish_removal(&*self.store, &head, text).await?;
                if completed.kept.is_some() {
                    return Err(CheckpointError::Completed {
                        id: self.id.clone(),
                        at: completed.at,
                    });
                }
                continue;
            }
            if let Some(owner) = head.owner.take_if(|owner| owner.until > now()) {
                let Owner { name: by, until, .. } = owner;
                return Err(CheckpointError::InUse { id: self.id.clone(), by, until });
            }
            let entries = match head.entries(&*self.store).await? {
                Ok(entries) => entries,
                // The owner may have completed the checkpoint just now; then the head is another
                // one.
                Err(missing) if missing_before.as_ref() == Some(&missing.0) => {
                    return Err(damaged(&self.id, &missing.0, "it is missing"));
                }
                Err(missing) => {
                    missing_before = Some(missing.0);
                    continue;
                }
            };
            let memory = Memory::new(entries);
            self.check_cleanups(&memory)?;
            // A dead owner may have written one more segment, which no head names.
            let litter = head.owner.is_some().then(|| head.segment_name(head.writes + 1));
            head.epoch += 1;
            head.writes += 1;
            self.owner.until = after(now(), self.lease);
            head.owner = Some(self.owner.clone());
            let text = head.to_text()?;
            let claimed =
                self.store.compare_and_set(&key, found.as_deref(), Some(&text), None).await;
            // The answer may be lost, or come from a second try of the client. The stored head
            // decides.
            if !matches!(claimed, Ok(true)) && self.store.get(&key).await?.as_ref() != Some(&text) {
                claimed?;
                continue;
            }
            if let Some(litter) = litter {
                self.store.delete(&segment_key(&self.id, &litter)).await?;
            }
            return Ok((head, text, memory));
        }
    }

    fn check_cleanups(&self, memory: &Memory) -> Result<(), CheckpointError> {
        memory.cleanups.values().try_for_each(|(key, _)| check_cleanup(&self.runners, key))
    }
}

/// Checks that a function is registered for the cleanup.
pub(crate) fn check_cleanup(
    runners: &BTreeMap<String, Runner>,
    key: &Key,
) -> Result<(), CheckpointError> {
    if runners.contains_key(key.name.as_str()) {
        return Ok(());
    }
    let registered = runners.keys().cloned().collect();
    Err(CheckpointError::UnknownCleanup { name: key.name.to_string(), registered })
}

/// Continues the removal of a checkpoint that was completed.
async fn finish_removal(
    store: &dyn KeyValueStore,
    head: &Head,
    text: &str,
) -> Result<(), CheckpointError> {
    let kept = head.completed.as_ref().and_then(|completed| completed.kept.as_ref());
    if head.segments.is_empty() && kept.is_some() {
        return Ok(());
    }
    for segment in &head.segments {
        store.delete(&segment_key(&head.id, segment)).await?;
    }
    let mut rest = head.clone();
    rest.segments.clear();
    let rest = kept
        .map(|(_, end)| Ok::<_, CheckpointError>((rest.to_text()?, until(now(), *end))))
        .transpose()?;
    let (rest, ttl) = rest.unzip();
    store.compare_and_set(&head_key(&head.id), Some(text), rest.as_deref(), ttl).await?;
    Ok(())
}

fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok());
    let process = format!("process {}", std::process::id());
    host.map_or(process.clone(), |host| format!("{process} on {}", host.trim()))
}

impl IntoFuture for Load {
    type Output = Result<Checkpoint, CheckpointError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.load())
    }
}
