//! The host, which plays a torture window by window. In a window, the host kills processes and
//! causes other failures while tasks run. The failures then end, and every task has to end. The
//! host checks what was recorded, and purges all tasks.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::take;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::{JoinHandle, block_in_place};

use crate::crew::{Crew, Deaths, Door, Launch, faketime};
use crate::ledger::{Line, Reader};
use crate::load::Load;
use crate::place::Place;
use crate::place::postgres::Cluster;
use crate::place::sqlite::File;
use crate::plan::{Deed, Plan, Store};
use crate::programs::connect;
use crate::proof::{History, Proof};

/// The time without an ended task after which the torture counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The interval at which the host checks the processes.
const TICK: Duration = Duration::from_millis(1);

/// The settings of a torture.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store that is tortured.
    pub store: Store,
    /// The number of processes that are killed.
    pub kills: u64,
    /// The number of kills in one window, after which what was recorded is checked.
    pub kills_per_window: u64,
    /// The seed of the first window's plan; the next window has the next seed.
    pub seed: u64,
    /// The number of the first window. The number of a window decides about wrong clocks, a pooler
    /// and failovers.
    pub first: u64,
    /// The path of the program `stepwell-torture`.
    pub program: PathBuf,
}

/// The counts of what was done, and of what was proven.
#[derive(Clone, Debug, Default)]
pub struct Report {
    windows: u64,
    deaths: Deaths,
    deeds: BTreeMap<Deed, u64>,
    proof: Proof,
    purged: u64,
    retried: u64,
    lost: usize,
    bytes: u64,
    took: Duration,
}

impl Report {
    /// Returns how many processes were killed.
    pub fn kills(&self) -> u64 {
        self.deaths.workers + self.deaths.clients
    }

    fn add(&mut self, deaths: Deaths, proof: &Proof) {
        self.windows += 1;
        self.deaths.workers += deaths.workers;
        self.deaths.clients += deaths.clients;
        self.deaths.starts += deaths.starts;
        self.deaths.stops += deaths.stops;
        self.deaths.all_at_once += deaths.all_at_once;
        self.deaths.fake_clocks += deaths.fake_clocks;
        self.proof.tasks += proof.tasks;
        self.proof.journaled += proof.journaled;
        self.proof.again += proof.again;
        self.proof.late += proof.late;
        self.proof.lines += proof.lines;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deaths, proof, .. } = self;
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} kills in {seconds:.1} s ({:.1}/s): {} of workers, {} of clients; {} processes \
             started",
            self.kills(),
            self.kills() as f64 / seconds.max(f64::MIN_POSITIVE),
            deaths.workers,
            deaths.clients,
            deaths.starts
        )?;
        writeln!(
            f,
            "{} tasks, {} results journaled, {} steps ran again before they were journaled, {} \
             were started by runs that had lost their tasks",
            proof.tasks, proof.journaled, proof.again, proof.late
        )?;
        writeln!(
            f,
            "{} lines of the ledger checked in {} windows; {} tasks purged, {} retries, {} \
             processes with wrong clocks",
            proof.lines, self.windows, self.purged, self.retried, deaths.fake_clocks
        )?;
        let mut deeds = self.deeds.iter().map(|(deed, count)| format!("{deed:?} {count}"));
        write!(f, "misfortunes: {}", deeds.by_ref().collect::<Vec<_>>().join(", "))?;
        if self.lost > 0 {
            write!(
                f,
                "; {} accepted tasks were lost with a server that nobody waited for",
                self.lost
            )?;
        }
        if self.bytes > 0 {
            write!(f, "; the database file has {} KiB in the end", self.bytes >> 10)?;
        }
        Ok(())
    }
}

/// Runs a torture, and proves that the guarantees held.
///
/// # Errors
/// Fails when a guarantee does not hold, when the torture is stuck, or when the torture itself
/// cannot go on.
pub async fn run(options: Options) -> Result<Report> {
    if faketime().is_none() {
        eprintln!(
            "LEFT OUT: processes with wrong clocks, because libfaketime is not installed (Debian's \
             package is faketime)"
        );
    }
    let begun = Instant::now();
    let folder = tempfile::Builder::new().prefix("torture-").tempdir()?;
    let place = Arc::new(match options.store {
        Store::Sqlite => Place::Sqlite(Box::new(File::new(folder.path()))),
        Store::Postgres => Place::Postgres(Box::new(Cluster::start().await?)),
    });
    let mut host = Host { options, folder, place, next: 1, report: Report::default() };
    let mut window = host.options.first;
    while host.report.kills() < host.options.kills {
        let left = host.options.kills - host.report.kills();
        let seed = host.options.seed.wrapping_add(window);
        let plan =
            Plan::draw(host.options.store, seed, window, left.min(host.options.kills_per_window));
        println!("window {window} of {:?}, {plan}", host.options.store);
        if let Err(error) = host.play(&plan).await {
            let kept = host.folder.keep();
            return Err(error.context(format!("window {window}, {plan}; see {}", kept.display())));
        }
        host.report.took = begun.elapsed();
        println!("{}\n", host.report);
        window += 1;
    }
    Ok(host.report)
}

struct Host {
    options: Options,
    folder: tempfile::TempDir,
    place: Arc<Place>,
    /// The number of the next process.
    next: u32,
    report: Report,
}

/// A window while it is played.
struct Window {
    plan: Plan,
    place: Arc<Place>,
    load: Arc<Load>,
    crew: Crew,
    reader: Reader,
    lines: Vec<Line>,
    dice: StdRng,
    lease: Duration,
    begun: Instant,
    /// The present misfortune of the server.
    storm: Option<JoinHandle<Result<usize>>>,
    /// The number of accepted tasks that were lost with a server.
    lost: usize,
}

impl Host {
    async fn play(&mut self, plan: &Plan) -> Result<()> {
        let folder = self.folder.path().join("window");
        std::fs::create_dir(&folder)?;
        let client = connect(&self.place.url(), &folder, 0).await?;
        if self.report.windows == 0 {
            self.place.prepare()?;
        }
        let store = self.options.store;
        let load =
            Load::begin(client, self.place.clone(), plan.caps(store), plan.is_lossy()).await?;
        let launch = self.launch(plan, &folder)?;
        let lease = launch.lease;
        let mut window = Window {
            plan: plan.clone(),
            place: self.place.clone(),
            load: load.clone(),
            crew: Crew::start(launch, plan.seed, self.next, !plan.is_lossy())?,
            reader: Reader::open(&folder)?,
            lines: Vec::new(),
            dice: StdRng::seed_from_u64(plan.seed),
            lease,
            begun: Instant::now(),
            storm: None,
            lost: 0,
        };
        let mut spawning = tokio::spawn(load.clone().spawn());
        let mut following = tokio::spawn(load.clone().follow());
        tokio::select! {
            ended = &mut spawning => ended??,
            ended = &mut following => ended??,
            played = window.torture() => played?,
        }
        load.end().await?;
        spawning.await??;
        window.calm().await?;
        following.abort();
        // The collector has ended, so nothing writes to the books any more.
        let _ = following.await;
        self.next = window.crew.next();
        let (deaths, mut lines, lost) = (window.crew.deaths, window.lines, window.lost);
        drop(window.crew);
        lines.extend(window.reader.read()?);
        let rows = block_in_place(|| self.place.chronicle(0, false))?;
        let (ended, spawned, cancelled) = {
            let books = &mut *load.books();
            self.report.retried += books.retried;
            (take(&mut books.ended), take(&mut books.spawned), take(&mut books.cancelled))
        };
        let (fake_clocks, lossy) = (plan.fake_clocks, plan.is_lossy());
        let history = History { lines, rows, ended, spawned, cancelled, fake_clocks, lossy };
        let proof = block_in_place(|| Proof::of(&history));
        self.report.add(deaths, &proof);
        self.report.lost += lost;
        plan.deeds.iter().for_each(|deed| *self.report.deeds.entry(*deed).or_default() += 1);
        proof.verdict()?;
        load.remove_all().await?;
        self.report.purged += load.books().purged;
        block_in_place(|| self.place.forget())?;
        if let Place::Sqlite(file) = &*self.place {
            self.report.bytes = file.size()?;
        }
        Ok(std::fs::remove_dir_all(folder)?)
    }

    fn launch(&self, plan: &Plan, folder: &std::path::Path) -> Result<Launch> {
        let here = Door { url: self.place.url(), namespace: None };
        let (workers, lease, lives) = match &*self.place {
            Place::Sqlite(_) => (vec![here.clone(); 3], Duration::from_millis(500), 24),
            Place::Postgres(cluster) => (
                block_in_place(|| cluster.doors(4, plan.pooled))?,
                Duration::from_millis(1_000),
                24,
            ),
        };
        // A client has to bear the same network as the workers.
        let client = workers.last().cloned().unwrap_or(here);
        Ok(Launch {
            program: self.options.program.clone(),
            folder: folder.to_owned(),
            workers,
            client,
            lease,
            concurrency: 6,
            fake_clocks: plan.fake_clocks,
            lives,
        })
    }
}

impl Window {
    fn read(&mut self) -> Result<()> {
        for line in self.reader.read()? {
            self.crew.saw(&line)?;
            self.lines.push(line);
        }
        Ok(())
    }

    /// Fails when no task has ended for `PATIENCE`.
    async fn check(&mut self) -> Result<()> {
        let idle = self.load.idle().unwrap_or_else(|| self.begun.elapsed());
        if idle < PATIENCE {
            return Ok(());
        }
        self.load.find_the_lost().await?;
        let left = self.load.unfinished().await?;
        let mut told = String::new();
        for task in left.iter().take(10) {
            let waits = self.load.client().waits(task.task_id).await?;
            told += &format!(
                "\n  {} {} {} attempt {} of run {}, paused {}, waits for {waits:?}",
                task.task_id, task.state, task.params, task.attempt, task.run_id, task.paused
            );
        }
        let workers = self.load.client().workers().list().await?;
        bail!(
            "stuck: nothing has ended for {idle:?}; workers {:?} {workers:?}; {} tasks left:{told}",
            self.crew.lines(),
            left.len()
        )
    }

    /// Kills processes until the plan's kills and deeds are done.
    async fn torture(&mut self) -> Result<()> {
        let mut done = 0;
        loop {
            tokio::time::sleep(TICK).await;
            self.read()?;
            self.crew.tend()?;
            self.check().await?;
            if self.storm.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(storm) = self.storm.take()
            {
                self.lost += storm.await??;
            }
            let kills = self.crew.deaths.workers + self.crew.deaths.clients;
            let due = self.plan.deeds.len() as u64 * kills / self.plan.kills.max(1);
            let deed = self.plan.deeds.get(done).copied();
            if let Some(deed) = deed.filter(|_| (done as u64) < due && self.storm.is_none()) {
                self.act(deed).await.with_context(|| format!("{deed:?}"))?;
                done += 1;
            }
            if kills >= self.plan.kills && deed.is_none() && self.storm.is_none() {
                return Ok(());
            }
        }
    }

    async fn act(&mut self, deed: Deed) -> Result<()> {
        let longer = self.lease * 2 + self.lease.mul_f64(self.dice.random());
        match deed {
            Deed::Stop => self.crew.stop_one(longer)?,
            Deed::KillAll => self.crew.kill_all()?,
            Deed::Pause => self.load.pause().await,
            Deed::Cancel => self.load.cancel().await,
            Deed::Purge => self.load.purge().await?,
            _ => {
                let (place, load) = (self.place.clone(), self.load.clone());
                self.storm = Some(tokio::spawn(async move {
                    match &*place {
                        Place::Postgres(cluster) => storm(cluster, &load, deed, longer).await,
                        Place::Sqlite(_) => Ok(0),
                    }
                }));
            }
        }
        Ok(())
    }

    /// Ends all misfortunes, and waits until every task has ended.
    async fn calm(&mut self) -> Result<()> {
        self.crew.spare()?;
        self.crew.kill_client()?;
        self.read()?;
        self.crew.let_a_client_end()?;
        self.load.find_the_lost().await?;
        while !(self.crew.client_has_ended()? && self.load.is_done().await?) {
            tokio::time::sleep(TICK * 20).await;
            self.read()?;
            self.crew.check()?;
            self.check().await?;
        }
        Ok(())
    }
}

/// Applies a deed to a server, and returns how many accepted tasks were lost by it.
async fn storm(cluster: &Cluster, load: &Load, deed: Deed, longer: Duration) -> Result<usize> {
    match deed {
        Deed::Terminate => block_in_place(|| cluster.terminate()).map(drop)?,
        Deed::Crash => block_in_place(|| cluster.crash())?,
        Deed::Cut => cluster.cut(),
        Deed::Slow => cluster.slow(longer).await,
        Deed::Swallow => cluster.swallow(longer).await,
        Deed::Part => cluster.part(longer).await?,
        Deed::FailOver | Deed::LossyFailOver => {
            let lossy = deed == Deed::LossyFailOver;
            let replica = block_in_place(|| cluster.replica(!lossy))?;
            tokio::time::sleep(longer).await;
            if lossy {
                block_in_place(|| cluster.hold_back(&replica))?;
                tokio::time::sleep(longer / 4).await;
            }
            let held = load.hold().await;
            block_in_place(|| cluster.fail_over(replica))?;
            let lost = load.learn_anew().await?;
            drop(held);
            return Ok(lost);
        }
        Deed::Stop | Deed::KillAll | Deed::Pause | Deed::Cancel | Deed::Purge => {}
    }
    Ok(0)
}
