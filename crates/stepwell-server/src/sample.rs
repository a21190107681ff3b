//! The samples that the overview draws. Samples are taken while the overview is in use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell::{CancellationToken, Durable, HistoryEntry, HistoryFilter, Lifecycle, QueueInfo};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::{end_of_history, last_of_history};
use crate::problem::Problem;

/// The interval between two samples.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// The number of samples that are kept.
pub(crate) const KEPT: usize = 150;
/// The time for which samples are taken after the overview was last requested.
const INTEREST: Duration = Duration::from_secs(15 * 60);
/// The minimum pause after a sample, as a multiple of the time that the store needed for the
/// sample.
const REST: u32 = 20;
/// The maximum number of events that are read at once.
const PAGE: usize = 5_000;
/// The maximum number of events that are read of the time before sampling began.
const MOST_AT_FIRST: usize = 100_000;

/// The counts of one moment.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    pub(crate) pending: u64,
    pub(crate) running: u64,
    pub(crate) suspended: u64,
    /// The number of tasks that completed since the sample before, by the history.
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    /// The median time from the spawn to the end of the tasks that completed. `p95` is the time
    /// that 95 % of them did not exceed.
    pub(crate) p50: Option<Duration>,
    pub(crate) p95: Option<Duration>,
    /// The contents of the queues; `None` for a time before sampling began.
    pub(crate) queues: Option<Vec<QueueInfo>>,
}

/// A sample that is being taken.
#[derive(Clone, Default)]
struct Counting {
    sample: Sample,
    took: Vec<Duration>,
}

impl Counting {
    fn count(&mut self, entry: &HistoryEntry) {
        let sample = &mut self.sample;
        match &entry.event {
            Ok(Lifecycle::TaskCompleted { .. }) => {
                sample.completed += 1;
                self.took.extend(
                    entry
                        .task_id
                        .made_at()
                        .map(|spawned| stepwell::store::until(spawned, entry.at)),
                );
            }
            Ok(Lifecycle::TaskFailed { retry_at: None, .. }) => sample.failed += 1,
            Ok(Lifecycle::TaskCancelled { .. }) => sample.cancelled += 1,
            _ => {}
        }
    }

    fn end(mut self) -> Sample {
        self.took.sort_unstable();
        let (p50, p95) = (quantile(&self.took, 0.5), quantile(&self.took, 0.95));
        Sample { p50, p95, ..self.sample }
    }
}

/// The samples that were taken, which all callers share.
#[derive(Clone, Default)]
pub(crate) struct Samples(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    samples: VecDeque<Sample>,
    looked: Option<Instant>,
    sampling: Option<Sampling>,
}

/// The background task that takes samples.
struct Sampling {
    task: JoinHandle<()>,
    begun: watch::Receiver<Begun>,
}

/// The result of the beginning; `None` until it is there.
type Begun = Option<Result<(), Problem>>;

impl Samples {
    /// Returns the samples. Sampling begins, or continues for a while. Sampling ends early when
    /// `closing` is cancelled.
    pub(crate) async fn look(
        &self,
        client: &Durable,
        closing: &CancellationToken,
    ) -> Result<Vec<Sample>, Problem> {
        let mut begun = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.looked = Some(Instant::now());
            match &kept.sampling {
                Some(sampling) if !sampling.task.is_finished() => sampling.begun.clone(),
                _ => {
                    let (sender, begun) = watch::channel(None);
                    // Sampling runs in its own task, because the first caller may go away
                    // meanwhile.
                    let (samples, client) = (self.clone(), client.clone());
                    let task = tokio::spawn(take(samples, client, closing.clone(), sender));
                    kept.sampling = Some(Sampling { task, begun: begun.clone() });
                    begun
                }
            }
        };
        // The first caller waits for the first samples.
        match begun.wait_for(Option::is_some).await.map(|begun| begun.clone()) {
            Ok(begun) => begun.unwrap_or(Ok(()))?,
            Err(_) => return Err(Problem::busy("the overview could not be made: try again")),
        }
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).samples.iter().cloned().collect())
    }

    /// Keeps a sample, and returns whether sampling goes on. Without a sample, sampling ends.
    fn keep(&self, sample: Option<Sample>) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on =
            sample.is_some() && kept.looked.is_some_and(|looked| looked.elapsed() < INTEREST);
        match sample {
            Some(sample) if goes_on => kept.samples.push_back(sample),
            _ => (kept.samples, kept.sampling) = (VecDeque::new(), None),
        }
        if kept.samples.len() > KEPT {
            kept.samples.pop_front();
        }
        goes_on
    }
}

/// Takes samples until the overview has not been requested for a while, or the store does not
/// answer.
async fn take(
    samples: Samples,
    client: Durable,
    closing: CancellationToken,
    begun: watch::Sender<Begun>,
) {
    match Sampler::begin(client).await {
        Ok((sampler, earlier)) => {
            earlier.into_iter().for_each(|sample| _ = samples.keep(Some(sample)));
            begun.send_replace(Some(Ok(())));
            sampler.run(&samples, &closing).await;
        }
        Err(problem) => {
            samples.keep(None);
            begun.send_replace(Some(Err(problem)));
        }
    }
}

struct Sampler {
    client: Durable,
    /// The number of the last event that was counted.
    last: u64,
}

impl Sampler {
    /// Returns a sampler, and the samples of the time before from the history.
    async fn begin(client: Durable) -> Result<(Self, Vec<Sample>), Problem> {
        let now = client.store().now().as_microsecond();
        let every = i64::try_from(EVERY.as_micros()).unwrap_or(i64::MAX);
        let since = now - every * i64::try_from(KEPT).unwrap_or(0);
        let last = last_of_history(&client, |entry| entry.at.as_microsecond() < since).await?;
        let mut sampler = Self { client, last };
        let mut counting = vec![Counting::default(); KEPT];
        let read = sampler.read(MOST_AT_FIRST, |entry| {
            let place = usize::try_from((entry.at.as_microsecond() - since) / every).unwrap_or(0);
            counting[place.min(KEPT - 1)].count(entry);
        });
        if read.await? == MOST_AT_FIRST {
            sampler.last = end_of_history(&sampler.client).await?;
        }
        let mut samples: Vec<_> = counting.into_iter().map(Counting::end).collect();
        samples.push(sampler.sample().await?);
        Ok((sampler, samples))
    }

    async fn run(mut self, samples: &Samples, closing: &CancellationToken) {
        loop {
            let begin = Instant::now();
            let sample = self.sample().await;
            if !samples.keep(sample.ok()) {
                return;
            }
            let pause = EVERY.max(begin.elapsed() * REST);
            if closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn sample(&mut self) -> Result<Sample, Problem> {
        let queues = self.client.queues().list().await?;
        let mut sample = Sample::default();
        for queue in &queues {
            sample.pending += queue.pending;
            sample.running += queue.running;
            sample.suspended += queue.suspended;
        }
        sample.queues = Some(queues);
        let mut counting = Counting { sample, took: Vec::new() };
        self.read(usize::MAX, |entry| counting.count(entry)).await?;
        Ok(counting.end())
    }

    /// Reads new events, at most `most`, and returns their number.
    async fn read(
        &mut self,
        most: usize,
        mut count: impl FnMut(&HistoryEntry),
    ) -> Result<usize, Problem> {
        let mut read = 0;
        loop {
            let limit = PAGE.min(most - read);
            let which = HistoryFilter { task_id: None, after: self.last, limit };
            let entries = self.client.history(which).await?.items;
            entries.iter().for_each(&mut count);
            self.last = entries.last().map_or(self.last, |entry| entry.id);
            read += entries.len();
            // A page that is not full may consist of long events.
            if entries.is_empty() || read == most {
                return Ok(read);
            }
        }
    }
}

/// Returns the quantile of sorted times: `part` of them are at most that long.
fn quantile(sorted: &[Duration], part: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}
