//! One history of a simulated world, from its seed to its report.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::Runtime;

use super::fault::Planned;
use super::moment::Moment;
use super::open::{Open, Opening};
use super::shrink::shrink;
use super::world::World;

/// Plays a history that a seed decides: the processes, faults and interleavings of a [`World`]
/// follow from the seed.
///
/// The history is played twice, and fails when the two plays differ. A history that fails is played
/// again with fewer and fewer faults, while it fails in the same way: the same text of its error or
/// panic up to the first colon. The report has the faults that are left, and the timeline of the
/// last play.
///
/// A history must be reproducible. The history draws random numbers from [`World::dice`], and
/// iterates over no hash map. A `tokio::select!` of the history is `biased`, unless the program is
/// built with `--cfg tokio_unstable`, where the seed decides the order of branches as well.
///
/// # Panics
/// Panics when it is called within a tokio runtime, because it makes its own one with virtual time.
pub fn simulate<F, Fut, E>(seed: u64, history: F) -> Report
where
    F: Fn(World) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Display,
{
    let first = Play::new(seed).run(&history);
    let mut again = Play::new(seed).run(&history);
    if first.fingerprint != again.fingerprint {
        let why = "is not reproducible: two plays of the seed differ, so something random is not \
                   the world's";
        again.failure.get_or_insert_with(|| why.into());
        return again;
    }
    let Some(check) = first.check() else { return first };
    let fails = |plan: &[Planned]| Play::new(seed).plan(plan).run(&history).check() == Some(check);
    let plan = shrink(&first.plan, SHRINKS, fails);
    Play::new(seed).plan(&plan).record().run(&history)
}

/// The maximum number of plays for making a failing history smaller.
const SHRINKS: usize = 200;

/// The maximum length of a history, in virtual time: 50 years.
const LIMIT: Duration = Duration::from_secs(50 * 365 * 24 * 3600);

/// A play of a history with options that [`simulate`] decides itself.
#[derive(Default)]
pub struct Play {
    seed: u64,
    plan: Option<Vec<Planned>>,
    record: bool,
    open: Option<Open>,
    embedded: bool,
}

impl Play {
    /// Prepares a play of the history of a seed, on the store in memory.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Replaces the faults that [`World::suffer`] would draw.
    pub fn plan(self, plan: &[Planned]) -> Self {
        Self { plan: Some(plan.to_vec()), ..self }
    }

    /// Records the timeline for the report.
    pub fn record(self) -> Self {
        Self { record: true, ..self }
    }

    /// Plays the history on stores that answer from their own threads, and that nothing outside of
    /// the world uses. The world opens one store for itself. Each process opens a store when it
    /// begins, and closes it when it dies. The stores use the world's clock.
    pub fn on(self, open: impl Fn(Arc<dyn Runtime>) -> Opening + Send + Sync + 'static) -> Self {
        Self { open: Some(Arc::new(open)), ..self }
    }

    /// Plays the history on stores as [`Play::on`] does, where each store is a part of its process.
    /// A call that is in progress when the process dies is not executed. A store that is not
    /// embedded may execute such a call after the process's death.
    pub fn on_embedded(
        self,
        open: impl Fn(Arc<dyn Runtime>) -> Opening + Send + Sync + 'static,
    ) -> Self {
        Self { embedded: true, ..self.on(open) }
    }

    /// Plays the history once, and returns the report.
    ///
    /// # Panics
    /// Panics when it is called within a tokio runtime.
    pub fn run<Fut, E>(self, history: impl FnOnce(World) -> Fut) -> Report
    where
        Fut: Future<Output = Result<(), E>>,
        E: Display,
    {
        let Self { seed, plan, record, open, embedded } = self;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
        let runtime = match builder.build() {
            Ok(runtime) => runtime,
            Err(error) => return Report { failure: Some(error.to_string()), ..Report::new(seed) },
        };
        let (world, ended) = {
            let _inside = runtime.enter();
            let world = match World::new(seed, plan, record, open, embedded) {
                Ok(world) => world,
                Err(error) => {
                    return Report { failure: Some(error.to_string()), ..Report::new(seed) };
                }
            };
            let (over, inside) = (world.0.over.clone(), world.clone());
            let playing = async move {
                tokio::time::timeout(LIMIT, over.run_until_cancelled(history(inside))).await
            };
            (world, catch_unwind(AssertUnwindSafe(|| runtime.block_on(playing))))
        };
        let mut report = Report::new(seed);
        report.virtual_time = {
            let _inside = runtime.enter();
            runtime.block_on(async { world.passed() })
        };
        let failure = match ended {
            Ok(Ok(Some(Ok(())) | None)) => None,
            Ok(Ok(Some(Err(error)))) => Some(format!("{error:#}")),
            Ok(Err(_)) => Some("is stuck: nothing happens any more".into()),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Some(text.unwrap_or_else(|| "the history panicked".into()))
            }
        };
        {
            let mut state = world.0.state();
            report.failure = state.failure.take().or(failure);
            report.fingerprint = state.fingerprint.number();
            report.commits = state.commits;
            report.faults = std::mem::take(&mut state.faults);
            report.plan = std::mem::take(&mut state.plan);
            report.timeline = state.timeline.take().unwrap_or_default();
        }
        // All tasks that still run end here, and drop what they hold.
        drop(runtime);
        world.0.let_go();
        report
    }
}

/// The report of a history.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed of the history.
    pub seed: u64,
    /// The reason of the failure; `None` for a history that passed.
    pub failure: Option<String>,
    /// A hash of all calls to the store and their answers. Two plays that differ have different
    /// numbers.
    pub fingerprint: u64,
    /// The number of batches that the store has applied.
    pub commits: u64,
    /// The number of faults of each kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The time that the history took, in virtual time.
    pub virtual_time: Duration,
    /// The faults that the history suffered.
    pub plan: Vec<Planned>,
    /// The events of the history in their order; empty without [`Play::record`].
    pub timeline: Vec<Moment>,
}

impl Report {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            failure: None,
            fingerprint: 0,
            commits: 0,
            faults: BTreeMap::new(),
            virtual_time: Duration::ZERO,
            plan: Vec::new(),
            timeline: Vec::new(),
        }
    }

    /// Returns the name of the check that failed: the text of the failure up to its first colon.
    pub fn check(&self) -> Option<&str> {
        self.failure.as_deref().map(|failure| failure.split(':').next().unwrap_or(failure))
    }

    /// Ends a test whose history has failed.
    ///
    /// # Panics
    /// Panics with the report when the history has failed.
    #[allow(clippy::panic, reason = "it is what an assertion does")]
    #[track_caller]
    pub fn assert_passed(&self) {
        if self.failure.is_some() {
            panic!("{self}");
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, commits, virtual_time, .. } = self;
        match &self.failure {
            Some(failure) => writeln!(f, "the history of seed {seed} fails: {failure}")?,
            None => writeln!(f, "the history of seed {seed} passes")?,
        }
        writeln!(f, "{commits} commits in {virtual_time:?} of virtual time")?;
        if !self.plan.is_empty() {
            writeln!(f, "what goes wrong:")?;
        }
        self.plan.iter().try_for_each(|planned| writeln!(f, "  {planned}"))?;
        if !self.timeline.is_empty() {
            writeln!(f, "what happens:")?;
        }
        self.timeline.iter().try_for_each(|moment| writeln!(f, "  {moment}"))
    }
}
