//! The processes of a window: their lifetimes, and what is done to them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::ledger::{Line, What};
use crate::programs::calls;

/// The path of the library that fakes a clock, in Debian's package.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The settings with which processes are started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The path of this program.
    pub(crate) program: PathBuf,
    /// The folder of the ledger and of the processes' output.
    pub(crate) folder: PathBuf,
    /// The access to the database, for each of the workers.
    pub(crate) workers: Vec<Door>,
    /// The access to the database for the client.
    pub(crate) client: Door,
    pub(crate) lease: Duration,
    pub(crate) concurrency: usize,
    /// Starts some workers with wrong clocks.
    pub(crate) fake_clocks: bool,
    /// The maximum number of lines that a worker may write before it is killed.
    pub(crate) lives: u32,
}

/// The access of a process to the database.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) url: String,
    /// The network namespace of the process.
    pub(crate) namespace: Option<String>,
}

/// Returns the library that fakes clocks, when it is installed.
pub(crate) fn faketime() -> Option<PathBuf> {
    Some(PathBuf::from(FAKETIME)).filter(|library| library.is_file())
}

/// The time at which a process is killed.
#[derive(Clone, Copy, Debug)]
enum Doom {
    /// The process is killed this time after it has written this number of lines.
    Lines(u32, Duration),
    /// The process is killed this time after its start, whatever it has done.
    Age(Duration),
    /// The process is not killed.
    Never,
}

struct Process {
    child: Child,
    number: u32,
    doom: Doom,
    born: Instant,
    lines: u32,
    /// The time at which the process had written enough lines.
    enough: Option<Instant>,
    /// The time at which a stopped process continues.
    stopped_until: Option<Instant>,
}

/// The counts of what was done to the processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deaths {
    pub(crate) workers: u64,
    pub(crate) clients: u64,
    pub(crate) starts: u64,
    pub(crate) stops: u64,
    pub(crate) all_at_once: u64,
    pub(crate) fake_clocks: u64,
}

/// All processes of a window.
pub(crate) struct Crew {
    launch: Launch,
    workers: Vec<Process>,
    client: Option<Process>,
    /// The client's turn, and the number of its calls in the turn that were answered.
    turn: (u64, u64),
    dice: StdRng,
    next: u32,
    pub(crate) deaths: Deaths,
}

impl Crew {
    pub(crate) fn start(launch: Launch, seed: u64, first: u32, with_client: bool) -> Result<Self> {
        let dice = StdRng::seed_from_u64(seed);
        let (workers, deaths) = (Vec::new(), Deaths::default());
        let mut crew =
            Self { launch, workers, client: None, turn: (0, 0), dice, next: first, deaths };
        for place in 0..crew.launch.workers.len() {
            let worker = crew.worker(place)?;
            crew.workers.push(worker);
        }
        if with_client {
            crew.client = Some(crew.client(None)?);
        }
        Ok(crew)
    }

    /// Returns the number that the next process would have.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    fn spawn(
        &mut self,
        door: &Door,
        role: &str,
        args: &[String],
        offset: Option<i32>,
    ) -> Result<Process> {
        let Launch { program, folder, .. } = &self.launch;
        let mut command = match &door.namespace {
            Some(namespace) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", namespace]).arg(program);
                ip
            }
            None => Command::new(program),
        };
        command.arg(role).args(["--url", &door.url, "--folder"]).arg(folder);
        command.args(["--process", &self.next.to_string()]).args(args);
        if let Some((offset, library)) = offset.zip(faketime()) {
            command.env("LD_PRELOAD", library).env("FAKETIME", format!("{offset:+}s"));
            command.env("DONT_FAKE_MONOTONIC", "1");
            self.deaths.fake_clocks += 1;
        }
        let said = OpenOptions::new().create(true).append(true).open(folder.join("said"))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child =
            command.spawn().with_context(|| format!("could not start {}", program.display()))?;
        let number = self.next;
        self.next += 1;
        self.deaths.starts += 1;
        let (born, doom) = (Instant::now(), Doom::Never);
        Ok(Process { child, number, doom, born, lines: 0, enough: None, stopped_until: None })
    }

    fn worker(&mut self, place: usize) -> Result<Process> {
        let (lives, lease) = (self.launch.lives, self.launch.lease);
        let door = self.launch.workers[place].clone();
        let args = [
            format!("--lease={}", lease.as_millis()),
            format!("--concurrency={}", self.launch.concurrency),
        ];
        let wrong = self.launch.fake_clocks && self.dice.random_ratio(1, 3);
        let offset = wrong.then(|| self.dice.random_range(-4..=4));
        let mut worker = self.spawn(&door, "worker", &args, offset)?;
        let linger = Duration::from_micros(self.dice.random_range(0..6_000));
        worker.doom = match self.dice.random_range(0..10) {
            // Such a worker may die while it opens the database, registers, or makes its first
            // claim.
            0 => Doom::Age(Duration::from_millis(self.dice.random_range(0..60))),
            _ => Doom::Lines(self.dice.random_range(1..=lives), linger),
        };
        Ok(worker)
    }

    fn client(&mut self, end: Option<u64>) -> Result<Process> {
        let door = self.launch.client.clone();
        let mut args =
            vec![format!("--turn={}", self.turn.0), format!("--answered={}", self.turn.1)];
        args.extend(end.map(|end| format!("--end={end}")));
        let mut client = self.spawn(&door, "client", &args, None)?;
        if end.is_none() {
            let linger = Duration::from_micros(self.dice.random_range(0..20_000));
            client.doom = Doom::Lines(self.dice.random_range(1..=6), linger);
        }
        Ok(client)
    }

    /// Records a line of the ledger.
    pub(crate) fn saw(&mut self, line: &Line) -> Result<()> {
        if line.what == What::Answered {
            let mut parts = line.name.split(':');
            let mut number =
                || parts.next().context("an answer without a number")?.parse().context("no number");
            let (turn, call, place): (u64, u64, u64) = (number()?, number()?, number()?);
            let together =
                if calls(turn) == 1 && turn % 4 == 3 { crate::programs::TOGETHER } else { 1 };
            if place + 1 == together {
                let answered = (turn, call + 1);
                let next = if answered.1 == calls(turn) { (turn + 1, 0) } else { answered };
                self.turn = self.turn.max(next);
            }
        }
        let mut all = self.workers.iter_mut().chain(&mut self.client);
        if let Some(process) = all.find(|process| process.number == line.process) {
            process.lines += 1;
            if let Doom::Lines(lines, _) = process.doom
                && process.lines >= lines
            {
                process.enough.get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    /// Kills the processes that are due, and starts others in their places. A process that was
    /// stopped long enough continues.
    pub(crate) fn tend(&mut self) -> Result<()> {
        let now = Instant::now();
        for place in 0..self.workers.len() {
            let worker = &mut self.workers[place];
            worker.check()?;
            if worker.stopped_until.is_some_and(|until| now >= until) {
                worker.go_on()?;
            }
            if worker.is_due(now) {
                worker.kill()?;
                self.deaths.workers += 1;
                self.workers[place] = self.worker(place)?;
            }
        }
        if let Some(mut client) = self.client.take() {
            client.check()?;
            if client.is_due(now) {
                client.kill()?;
                self.deaths.clients += 1;
                client = self.client(None)?;
            }
            self.client = Some(client);
        }
        Ok(())
    }

    /// Stops one running worker for a time.
    pub(crate) fn stop_one(&mut self, time: Duration) -> Result<()> {
        let mut running: Vec<_> =
            self.workers.iter_mut().filter(|worker| worker.stopped_until.is_none()).collect();
        // Another worker must run, to take over the tasks of the stopped one.
        if running.len() > 1 {
            let chosen = self.dice.random_range(0..running.len());
            running[chosen].signal("-STOP")?;
            running[chosen].stopped_until = Some(Instant::now() + time);
            // A thread lets it go on, because the host itself may wait for a lock of the database
            // that the stopped process holds.
            let process = running[chosen].child.id();
            thread::spawn(move || {
                thread::sleep(time);
                signal(process, "-CONT")
            });
            self.deaths.stops += 1;
        }
        Ok(())
    }

    /// Kills all workers at once.
    pub(crate) fn kill_all(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            worker.check()?;
            worker.child.kill()?;
        }
        self.deaths.all_at_once += 1;
        for place in 0..self.workers.len() {
            self.workers[place].child.wait()?;
            self.deaths.workers += 1;
            self.workers[place] = self.worker(place)?;
        }
        Ok(())
    }

    /// Ends all kills and stops.
    pub(crate) fn spare(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            if worker.stopped_until.is_some() {
                worker.go_on()?;
            }
            worker.doom = Doom::Never;
        }
        Ok(())
    }

    /// Kills the client.
    pub(crate) fn kill_client(&mut self) -> Result<()> {
        if let Some(client) = &mut self.client {
            client.kill()?;
            self.deaths.clients += 1;
        }
        Ok(())
    }

    /// Starts another client, which ends the turn of the killed one. All lines of the killed client
    /// have been read, so it has begun no later turn.
    pub(crate) fn let_a_client_end(&mut self) -> Result<()> {
        if self.client.is_some() {
            self.client = Some(self.client(Some(self.turn.0 + 1))?);
        }
        Ok(())
    }

    /// Returns whether the last client has ended. A client that failed is an error.
    pub(crate) fn client_has_ended(&mut self) -> Result<bool> {
        let Some(client) = &mut self.client else { return Ok(true) };
        let Some(status) = client.child.try_wait()? else { return Ok(false) };
        ensure!(status.success(), "the last client failed ({status})");
        self.client = None;
        Ok(true)
    }

    /// Checks that no worker has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.workers.iter_mut().try_for_each(Process::check)
    }

    /// Returns how many lines each living worker has written, for reports about a torture that is
    /// stuck.
    pub(crate) fn lines(&self) -> BTreeMap<u32, u32> {
        self.workers.iter().map(|worker| (worker.number, worker.lines)).collect()
    }
}

impl Process {
    fn is_due(&self, now: Instant) -> bool {
        match self.doom {
            Doom::Lines(_, linger) => self.enough.is_some_and(|enough| now >= enough + linger),
            Doom::Age(age) => now >= self.born + age,
            Doom::Never => false,
        }
    }

    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("process {} ended by itself ({status})", self.number);
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn go_on(&mut self) -> Result<()> {
        self.stopped_until = None;
        self.signal("-CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        signal(self.child.id(), name)
    }
}

/// Sends a signal to a process.
fn signal(process: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([name, &process.to_string()]).status()?;
    ensure!(status.success(), "kill {name} failed ({status})");
    Ok(())
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A killed process leaves these files of libfaketime.
        for file in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = std::fs::remove_file(format!("/dev/shm/{file}{}", self.child.id()));
        }
    }
}
