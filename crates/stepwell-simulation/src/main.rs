//! The program that plays many histories, or shows one: `cargo xtask sim`.

use std::collections::BTreeMap;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use stepwell_simulation::plan::Plan;
use stepwell_simulation::{Backend, Played, Postgres, play, shrink};

#[derive(Parser)]
#[command(about = "Plays random histories of Stepwell in a simulated world")]
struct Cli {
    /// The number of histories to play, each of them twice, or once on files and on PostgreSQL
    #[arg(long, default_value_t = 10_000)]
    histories: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// The number of histories to play at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Show the history of this seed instead, and of one that fails the smallest part that still
    /// does
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed, show the whole history although it fails
    #[arg(long)]
    whole: bool,
    /// Go on after a failure, and count them
    #[arg(long)]
    keep_going: bool,
    /// Play on a new PostgreSQL server, or on the one of this URL
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    postgres: Option<String>,
    /// Play on files of SQLite, below the folder for temporary files
    #[arg(long, conflicts_with = "postgres")]
    sqlite: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let started = match cli.postgres.as_deref() {
        Some("") => Some(throwaway::Postgres::start()?),
        _ => None,
    };
    let url = started.as_ref().map(throwaway::Postgres::url).or_else(|| cli.postgres.clone());
    let backend = match url.map(Postgres::new).transpose()? {
        Some(server) => Backend::Postgres(Arc::new(server)),
        None if cli.sqlite => Backend::Sqlite,
        None => Backend::Memory,
    };
    // Simulated tasks panic on purpose, and the report of a history holds its own panics.
    panic::set_hook(Box::new(|_| ()));
    match cli.seed {
        Some(seed) => show(seed, &backend, cli.whole),
        None => play_many(&cli, &backend),
    }
}

/// Prints a plan, its events, and its result.
fn show(seed: u64, backend: &Backend, whole: bool) -> anyhow::Result<ExitCode> {
    let mut plan = Plan::draw(seed);
    let first = play(&plan, backend, false)?;
    if let Some(check) = first.report.check()
        && !whole
    {
        plan = shrink(&plan, backend, check);
    }
    println!("{:?}", plan.setup);
    println!("what is done, and what goes wrong:");
    plan.steps.iter().for_each(|step| println!("{step}"));
    let again = play(&plan, backend, true)?;
    println!("{}", again.report);
    let other = play(&plan, backend, true)?;
    let mut pairs = again.report.timeline.iter().zip(&other.report.timeline);
    if let Some((one, other)) = pairs.find(|(one, other)| one.to_string() != other.to_string()) {
        println!(
            "played again, it differs for the first time where this happens:\n  {one}\n  {other}"
        );
    } else if backend.repeats() && again.report.fingerprint != other.report.fingerprint {
        println!("played again, it differs, and its timeline does not");
    }
    Ok(match first.report.failure {
        Some(failure) => {
            println!("the history of seed {seed} fails: {failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    })
}

/// The totals over many histories.
#[derive(Default)]
struct Sums {
    histories: u64,
    commits: u64,
    closures: u64,
    virtual_time: Duration,
    faults: BTreeMap<&'static str, u64>,
    without_faults: u64,
    failures: BTreeMap<String, (u64, Vec<u64>)>,
}

impl Sums {
    fn add(&mut self, played: &Played) {
        let Played { report, closures } = played;
        self.histories += 1;
        self.commits += report.commits;
        self.closures += closures;
        self.virtual_time = self.virtual_time.saturating_add(report.virtual_time);
        self.without_faults += u64::from(report.faults.is_empty());
        for (fault, times) in &report.faults {
            *self.faults.entry(fault).or_default() += times;
        }
    }
}

fn play_many(cli: &Cli, backend: &Backend) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let sums = Mutex::new(Sums::default());
    let work = || -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= cli.histories {
                break;
            }
            let seed = cli.first.wrapping_add(number);
            let plan = Plan::draw(seed);
            let one = play(&plan, backend, false)?;
            let mut failure = one.report.failure.clone();
            if backend.repeats()
                && one.report.fingerprint != play(&plan, backend, false)?.report.fingerprint
            {
                failure = Some("not reproducible: two plays of the seed differ".into());
            }
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.add(&one);
            if let Some(failure) = failure {
                let check = failure.split(':').next().unwrap_or(&failure).to_owned();
                let (times, seeds) = sums.failures.entry(check).or_default();
                *times += 1;
                if seeds.len() < 5 {
                    seeds.push(seed);
                    println!("seed {seed} fails: {failure}\n  cargo xtask sim --seed {seed}");
                }
                stop.store(!cli.keep_going, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cli.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow::anyhow!("a history panicked")));
        ended.collect::<anyhow::Result<Vec<_>>>()?.into_iter().collect::<anyhow::Result<()>>()
    })?;
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell(&sums, if backend.repeats() { "twice" } else { "once" }, begun.elapsed());
    Ok(if sums.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(sums: &Sums, plays: &str, took: Duration) {
    let Sums { histories, commits, closures, virtual_time, .. } = sums;
    let each = |sum: u64| sum as f64 / (*histories).max(1) as f64;
    let rate = *histories as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE);
    let years = virtual_time.as_secs_f64() / (365.25 * 24.0 * 3600.0);
    println!(
        "{histories} histories, each played {plays}, in {:.1} s: {rate:.0} histories/s",
        took.as_secs_f64()
    );
    println!(
        "{commits} commits ({:.1} each), {closures} closures ({:.1} each)",
        each(*commits),
        each(*closures)
    );
    println!("{years:.3} years of virtual time");
    let faults: u64 = sums.faults.values().sum();
    println!(
        "{faults} faults ({:.2} each), none in {} histories",
        each(faults),
        sums.without_faults
    );
    sums.faults.iter().for_each(|(fault, times)| println!("  {times:>9} {fault}"));
    for (check, (times, seeds)) in &sums.failures {
        println!("FAILED {times} times: {check}, for example with the seeds {seeds:?}");
    }
}
