//! What goes on, as the overview draws it: samples that are taken while somebody looks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell::QueueInfo;

use crate::app::App;
use crate::problem::Problem;

/// How far apart samples are.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// How many are kept.
pub(crate) const KEPT: usize = 150;
/// For how long samples are taken after somebody has looked.
const INTEREST: Duration = Duration::from_secs(15 * 60);
/// Of the time that the store needs to answer, that many times as long it is left alone.
const REST: u32 = 20;
/// How many happenings are read for a sample.
const PAGE: usize = 5_000;

/// A moment.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    pub(crate) pending: u64,
    pub(crate) running: u64,
    pub(crate) suspended: u64,
    /// Ended since the sample before, by the history.
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    /// How long those that completed took, from their spawn, sorted.
    pub(crate) took: Vec<Duration>,
    pub(crate) queues: Vec<QueueInfo>,
}

#[derive(Default)]
pub(crate) struct Samples(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    samples: VecDeque<Sample>,
    looked: Option<Instant>,
    runs: bool,
}

impl Samples {
    /// What there is. Sampling begins, or goes on for a while.
    pub(crate) async fn look(&self, app: &Arc<App>) -> Result<Vec<Sample>, Problem> {
        let begin = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.looked = Some(Instant::now());
            !std::mem::replace(&mut kept.runs, true)
        };
        if begin {
            let mut sampler = Sampler { app: app.clone(), last: None };
            // The first is there for the first who looks.
            let first = sampler.sample().await;
            self.keep(first.as_ref().ok().cloned());
            first?;
            tokio::spawn(sampler.run());
        }
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).samples.iter().cloned().collect())
    }

    /// Keeps a sample; without one, none are taken any more. Whether to go on.
    fn keep(&self, sample: Option<Sample>) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.runs = sample.is_some() && kept.looked.is_some_and(|looked| looked.elapsed() < INTEREST);
        match sample {
            Some(sample) if kept.runs => kept.samples.push_back(sample),
            _ => kept.samples.clear(),
        }
        if kept.samples.len() > KEPT {
            kept.samples.pop_front();
        }
        kept.runs
    }
}

struct Sampler {
    app: Arc<App>,
    /// The number of the last event that was counted.
    last: Option<u64>,
}

impl Sampler {
    async fn run(mut self) {
        let closing = self.app.closing.clone();
        loop {
            let begin = Instant::now();
            let sample = self.sample().await;
            if !self.app.samples.keep(sample.ok()) {
                return;
            }
            let pause = EVERY.max(begin.elapsed() * REST);
            if closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn sample(&mut self) -> Result<Sample, Problem> {
        use stepwell::{HistoryFilter, Lifecycle};
        let queues = self.app.client.queues().await?;
        let mut sample = Sample::default();
        for queue in &queues {
            sample.pending += queue.pending;
            sample.running += queue.running;
            sample.suspended += queue.suspended;
        }
        sample.queues = queues;
        let mut last = match self.last {
            Some(last) => last,
            None => crate::feed::end_of_history(&self.app).await?,
        };
        loop {
            let entries =
                self.app.client.history(HistoryFilter { task_id: None, after: last, limit: PAGE }).await?;
            for entry in &entries {
                match &entry.event {
                    Ok(Lifecycle::TaskCompleted { .. }) => {
                        sample.completed += 1;
                        sample.took.push(since_spawn(entry));
                    }
                    Ok(Lifecycle::TaskFailed { retry_at: None, .. }) => sample.failed += 1,
                    Ok(Lifecycle::TaskCancelled { .. }) => sample.cancelled += 1,
                    _ => {}
                }
            }
            last = entries.last().map_or(last, |entry| entry.id);
            if entries.len() < PAGE {
                break;
            }
        }
        self.last = Some(last);
        sample.took.sort_unstable();
        Ok(sample)
    }
}

/// An id tells when it was made, to the millisecond.
fn since_spawn(entry: &stepwell::HistoryEntry) -> Duration {
    let spawned = entry.task_id.as_uuid().get_timestamp().map_or(0, |time| {
        let (seconds, nanos) = time.to_unix();
        seconds * 1_000 + u64::from(nanos) / 1_000_000
    });
    let at = u64::try_from(entry.at.as_millisecond()).unwrap_or(0);
    Duration::from_millis(at.saturating_sub(spawned))
}

/// The part of the sorted times that is at most so long.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}
