//! The plan of a window: what is done to its processes and servers, drawn from a seed.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::crew::faketime;
use crate::work::Kind;

/// The kind of store that is tortured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// A SQLite file.
    Sqlite,
    /// PostgreSQL servers.
    Postgres,
}

/// A misfortune, or an act of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// A worker is stopped for longer than its lease, and continues.
    Stop,
    /// All workers are killed at once.
    KillAll,
    /// A task is paused, and resumed.
    Pause,
    /// A task with children is cancelled.
    Cancel,
    /// Completed tasks are purged.
    Purge,
    /// Sessions are terminated.
    Terminate,
    /// The server crashes and starts again.
    Crash,
    /// Connections are cut, some within a message.
    Cut,
    /// Connections are slow.
    Slow,
    /// Connections swallow everything for longer than a lease.
    Swallow,
    /// A worker's host has no network for longer than a lease.
    Part,
    /// The primary dies, and a replica that has everything takes its place.
    FailOver,
    /// The primary dies, and a replica that lacks the last commits takes its place.
    LossyFailOver,
}

/// The plan of a window.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kills: u64,
    pub(crate) deeds: Vec<Deed>,
    pub(crate) fake_clocks: bool,
    /// Sends half of the workers through a pooler.
    pub(crate) pooled: bool,
}

/// The number of kills for each deed.
const KILLS_PER_DEED: u64 = 8;

impl Plan {
    /// Draws the plan of a window. Deeds that need a server of their own, or that weaken the
    /// checks, occur in every few windows only.
    pub(crate) fn draw(store: Store, seed: u64, window: u64, kills: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let (fake_clocks, failover) = (faketime().is_some() && window % 3 == 1, window % 3);
        let lossy = store == Store::Postgres && failover == 2;
        let mut choice = vec![Deed::Stop, Deed::Stop, Deed::KillAll];
        if !lossy {
            choice.extend([Deed::Pause, Deed::Pause, Deed::Cancel, Deed::Cancel]);
            // By a wrong clock, tasks ended long ago.
            choice.extend((!fake_clocks).then_some(Deed::Purge));
        }
        if store == Store::Postgres {
            let storms =
                [Deed::Terminate, Deed::Cut, Deed::Slow, Deed::Swallow, Deed::Part, Deed::Crash];
            choice.extend(storms.into_iter().filter(|deed| !lossy || *deed != Deed::Crash));
        }
        let count = (kills / KILLS_PER_DEED).max(1);
        let mut deeds: Vec<_> =
            (0..count).map(|_| choice[dice.random_range(0..choice.len())]).collect();
        if store == Store::Postgres && failover > 0 {
            let deed = if lossy { Deed::LossyFailOver } else { Deed::FailOver };
            deeds.insert(deeds.len() / 2, deed);
        }
        Self { seed, kills, deeds, fake_clocks, pooled: failover == 0 }
    }

    /// Returns whether the last commits may be lost.
    pub(crate) fn is_lossy(&self) -> bool {
        self.deeds.contains(&Deed::LossyFailOver)
    }

    /// Returns the maximum number of tasks of each kind that may wait or run at a time.
    pub(crate) fn caps(&self, store: Store) -> Vec<(Kind, usize)> {
        // On PostgreSQL, the tasks of a dead worker wait for the end of its lease.
        let times = if store == Store::Postgres { 3 } else { 1 };
        let mut caps = vec![
            (Kind::Plain, 24),
            (Kind::Family, 6),
            (Kind::Sorted, 4),
            (Kind::Turn, 6),
            (Kind::Narrow, 4),
        ];
        // A client's answered call may be lost with a server, and is not made again.
        if !self.is_lossy() {
            caps.extend([(Kind::Saga, 9), (Kind::Flaky, 6), (Kind::Listener, 6), (Kind::Tick, 1)]);
        }
        caps.into_iter().map(|(kind, cap)| (kind, cap * times)).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<Deed, u32> = BTreeMap::new();
        self.deeds.iter().for_each(|deed| *counts.entry(*deed).or_default() += 1);
        write!(f, "seed {}: {} kills", self.seed, self.kills)?;
        counts.iter().try_for_each(|(deed, count)| write!(f, ", {deed:?} {count}"))?;
        f.write_str(if self.fake_clocks { ", wrong clocks" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| Plan::draw(Store::Postgres, seed, 1, 200);
        assert_eq!(plan(7).deeds, plan(7).deeds);
        assert_ne!(plan(7).deeds, plan(8).deeds);
        assert!(plan(7).deeds.contains(&Deed::FailOver) && !plan(7).is_lossy());
        assert!(Plan::draw(Store::Postgres, 7, 2, 200).is_lossy());
    }
}
