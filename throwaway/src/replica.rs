//! Replicas: servers that follow another one.

use anyhow::{Context as _, Result};

use crate::Postgres;
use crate::process::{run, wait_until};

/// The name by which a primary knows its replicas.
const NAME: &str = "replica";

impl Postgres {
    /// Starts a server that follows this one, and waits until it does. It calls itself `replica`.
    pub fn replica(&self) -> Result<Self> {
        let parent = self.folder().parent().context("the folder has no parent")?;
        let mut replica = Self::prepare(parent)?;
        replica.give_folder()?;
        let mut copy = replica.command("pg_basebackup");
        copy.args([
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            "--dbname",
            &self.url(),
        ]);
        run(copy.arg("--pgdata").arg(replica.data()))?;
        replica.set(&[
            ("cluster_name", NAME),
            // The copied settings may name this replica: when it is promoted, it must not wait for
            // itself.
            ("synchronous_standby_names", ""),
            // A primary that comes back is found at once.
            ("wal_retrieve_retry_interval", "100ms"),
        ])?;
        replica.start_somewhere()?;
        wait_until("the replica follows its primary", || {
            Ok(replica.sql("SELECT status FROM pg_stat_wal_receiver")? == "streaming")
        })?;
        Ok(replica)
    }

    /// Makes every commit that begins to wait after this call wait for the replicas that `names`
    /// demands, which is a value of `synchronous_standby_names`, such as `replica`. Nothing is
    /// waited for when it is empty.
    pub fn use_synchronous(&self, names: &str) -> Result<()> {
        let quoted = names.replace('\'', "''");
        self.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{quoted}'"))?;
        self.sql("SELECT pg_reload_conf()")?;
        wait_until("the new names are read", || {
            Ok(self.sql("SHOW synchronous_standby_names")? == names)
        })?;
        // It is the checkpointer that tells all sessions. It has been sent the news before a new
        // session could see them, and reads the news before it makes the checkpoint that it
        // is asked for.
        self.sql("CHECKPOINT")?;
        Ok(())
    }

    /// Makes a replica a server of its own, which accepts writes when this returns.
    pub fn promote(&self) -> Result<()> {
        self.pg_ctl(&["promote"])
    }
}
