//! The execution of a plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stepwell::testing::{Fault, Place, Play, Report, World};
use stepwell::{
    CancellationPolicy, Coalesce, Disposition, Durable, Error, QueueLimits, RateLimit,
    RetryStrategy, Schedule, SpawnOptions, StoreError, TaskId, TaskState, Worker, WorkerOptions,
};

use crate::database::{Backend, Database, User};
use crate::ending;
use crate::flow::FLOW;
use crate::ledger::Ledger;
use crate::owners::Owners;
use crate::params::{Params, TASK};
use crate::plan::{Action, Plan, Setup, Spawn, Step, Transact, VERSIONS, Work};
use crate::script::LIMIT;
use crate::tasks::{self, Site, event_name};

/// The result of a plan.
pub struct Played {
    /// The world's report.
    pub report: Report,
    /// The number of closures that have run.
    pub closures: u64,
}

/// Plays a plan. With `record`, the report keeps the timeline.
///
/// # Errors
/// Fails when the plan's database cannot be created.
pub fn play(plan: &Plan, backend: &Backend, record: bool) -> anyhow::Result<Played> {
    let database = Database::new(backend, plan)?;
    let mut play = Play::new(plan.seed);
    if record {
        play = play.record();
    }
    play = match database.opener() {
        Some(open) if database.notices_deaths() => play.on_embedded(open),
        Some(open) => play.on(open),
        None => play,
    };
    let closures = Arc::new(Mutex::new(0));
    let counted = closures.clone();
    let report = play.run(|world| async {
        let user = database.user(&world).await?;
        let history = History::new(world, plan, user, database.notices_deaths());
        let result = history.run(plan).await;
        *counted.lock().unwrap_or_else(PoisonError::into_inner) = history.ledger.books().closures;
        anyhow::Ok(result?)
    });
    let closures = *closures.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Played { report, closures })
}

/// The maximum number of times that a failing plan is played to make it smaller.
const SHRINKS: usize = 400;

/// Removes the steps that a failing plan does not need to fail in the same check.
pub fn shrink(plan: &Plan, backend: &Backend, check: &str) -> Plan {
    let with = |steps: &[Step]| Plan { steps: steps.to_vec(), ..plan.clone() };
    let fails = |steps: &[Step]| {
        play(&with(steps), backend, false).is_ok_and(|played| played.report.check() == Some(check))
    };
    with(&stepwell::testing::shrink(&plan.steps, SHRINKS, fails))
}

/// The client and the worker of a process.
#[derive(Default)]
struct Process {
    client: Option<Durable>,
    worker: Option<(Place, Worker)>,
}

type Processes = Arc<Mutex<BTreeMap<usize, Process>>>;

struct History {
    world: World,
    ledger: Arc<Ledger>,
    processes: Processes,
    /// Tells whether new processes begin with the changed code.
    changed: Arc<AtomicBool>,
    user: Option<Arc<User>>,
}

impl History {
    fn new(world: World, plan: &Plan, user: Option<Arc<User>>, notices_deaths: bool) -> Self {
        let ledger = Arc::new(Ledger::new(world.clone()));
        let owners = Owners::new(ledger.clone(), notices_deaths);
        world.watch(move |seen| owners.sees(seen));
        world.drift(plan.setup.drift);
        Self { world, ledger, processes: Processes::default(), changed: Arc::default(), user }
    }

    async fn run(&self, plan: &Plan) -> Result<(), Error> {
        let setup = &plan.setup;
        let client = self.world.client(build).await?;
        self.start(setup).await;
        let mut end = Duration::ZERO;
        for Step { at, action } in &plan.steps {
            tokio::time::sleep(at.saturating_sub(self.world.passed())).await;
            if let Action::Fault(fault) = action {
                self.world.inject(fault);
                end = end.max(self.world.passed() + fault.lasts());
                continue;
            }
            self.world.note("history", format_args!("{action:?}"));
            self.act(&client, action, setup).await;
        }
        tokio::time::sleep((end + Duration::from_millis(1)).saturating_sub(self.world.passed()))
            .await;
        self.world.calm();
        ending::wait_for_all(&self.ledger, &client, setup.lease).await?;
        ending::check(&self.ledger, self.user.as_deref()).await
    }

    async fn start(&self, setup: &Setup) {
        let (ledger, processes, setup) =
            (self.ledger.clone(), self.processes.clone(), setup.clone());
        let (count, changed, user) = (setup.processes, self.changed.clone(), self.user.clone());
        let start = move |place: Place| {
            let (ledger, processes, setup) = (ledger.clone(), processes.clone(), setup.clone());
            let (changed, user) = (changed.load(Ordering::SeqCst), user.clone());
            async move {
                let version = u8::try_from(place.number).unwrap_or(0) % VERSIONS;
                let version = setup.versions.then_some(version);
                let lease = setup.lease;
                let site = Site { place: place.clone(), ledger, lease, changed, version, user };
                let client = place.client(|builder| build(builder).state(site.clone())).await?;
                tasks::register(&client, &site).await?;
                let options = WorkerOptions::new()
                    .lease(setup.lease)
                    .poll_interval(setup.lease)
                    .claim_timeout((setup.lease * 10).max(Duration::from_secs(5)))
                    .grace(setup.lease)
                    .shutdown_timeout(setup.lease)
                    .concurrency(setup.concurrency)
                    .max_in_memory(setup.in_memory);
                let options = match version {
                    Some(version) => options.code_version(version_name(version))?,
                    None => options,
                };
                {
                    let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                    let process = processes.entry(place.number).or_default();
                    *process = Process { client: Some(client.clone()), worker: None };
                }
                let worker = client.start_worker(options).await;
                let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                let number = place.number;
                processes.entry(number).or_default().worker = Some((place, worker));
                Ok(())
            }
        };
        self.world.run(count, start).await;
    }

    /// Returns the client of a random process, or the client that nothing happens to.
    fn client(&self, client: &Durable) -> Durable {
        let process = usize::try_from(self.world.dice().roll(4)).unwrap_or(0);
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes
            .get(&process)
            .and_then(|process| process.client.clone())
            .unwrap_or_else(|| client.clone())
    }

    async fn act(&self, client: &Durable, action: &Action, setup: &Setup) {
        let (ledger, asked) = (&self.ledger, self.client(client));
        // The store may refuse the action.
        match action {
            Action::Spawn(spawn) => {
                drop(tokio::spawn(spawn_task(ledger.clone(), asked, spawn.clone())));
            }
            Action::Send(number, _)
            | Action::Cancel(number)
            | Action::Retry(number)
            | Action::Retrigger(number)
            | Action::Pause(number)
            | Action::Resume(number)
            | Action::Delete(number)
            | Action::Move(number)
            | Action::Damage(number, _) => {
                let task_id = ledger.books().spawned.get(number).copied();
                if let Some(task_id) = task_id {
                    self.act_on(task_id, client, asked, action).await;
                }
            }
            Action::Emit(event) => {
                let payload = self.world.dice().roll(1 << 40);
                let name = event_name(*event);
                tokio::spawn(async move { drop(asked.emit_event(name.as_str(), &payload).await) });
            }
            Action::Purge => {
                ledger.books().purged = true;
                drop(client.purge(setup.lease, None).await);
            }
            Action::PauseQueue => drop(client.queues().pause("default").await),
            Action::ResumeQueue => drop(client.queues().resume("default").await),
            Action::Limit(running, rate) => {
                let rate = rate.map(|starts| RateLimit { starts, per: Duration::from_secs(1) });
                let limits =
                    QueueLimits { max_running: *running, max_running_per_worker: None, rate };
                drop(client.queues().limit("default", limits).await);
            }
            Action::Schedule(every) => {
                ledger.books().schedules += 1;
                let params = Params::of(Vec::new());
                let schedule = Schedule::every("often", *every);
                drop(client.schedules().put_named(schedule, TASK, &params).await);
            }
            Action::Unschedule => drop(client.schedules().delete("often").await),
            Action::Transact(transact) => {
                let Some(user) = self.user.clone() else { return };
                tokio::spawn(user_spawns(ledger.clone(), user, transact.clone()));
            }
            Action::Deploy(process) => self.deploy(*process),
            Action::Change => {
                self.changed.store(true, Ordering::SeqCst);
                for process in 0..self.world.processes() {
                    self.world.crash(process, Duration::ZERO);
                }
            }
            Action::Fault(
                Fault::Crash { .. }
                | Fault::Freeze { .. }
                | Fault::Outage { .. }
                | Fault::Jump { .. },
            ) => {}
        }
    }

    /// Acts on one task. The process of the client `asked` may die before it is answered.
    async fn act_on(&self, task_id: TaskId, client: &Durable, asked: Durable, action: &Action) {
        // The task's state or the store may refuse the action.
        match action {
            Action::Send(_, topic) => self.send(client, task_id, *topic).await,
            Action::Cancel(_) => {
                tokio::spawn(async move { drop(asked.cancel(task_id).await) });
            }
            Action::Retry(_) => {
                tokio::spawn(async move { drop(asked.retry(task_id).await) });
            }
            Action::Retrigger(number) => {
                // Several numbers may stand for the same task.
                let number = self.number_of(task_id).unwrap_or(*number);
                self.ledger.books().triggered_again.insert(number);
                tokio::spawn(async move { drop(asked.retrigger(task_id).await) });
            }
            Action::Pause(_) => drop(client.pause(task_id).await),
            Action::Resume(_) => drop(client.resume(task_id).await),
            Action::Delete(_) => {
                self.ledger.books().deleted.insert(task_id);
                tokio::spawn(async move { drop(asked.delete(task_id).await) });
            }
            Action::Move(_) => self.take_out_and_in(client, task_id).await,
            Action::Damage(_, way) => {
                if let Some(user) = &self.user {
                    self.damage(user, task_id, *way);
                }
            }
            // The other actions are about no task.
            _ => {}
        }
    }

    /// Sends the next message of a topic to a task.
    async fn send(&self, client: &Durable, task_id: TaskId, topic: u8) {
        let message = {
            let mut books = self.ledger.books();
            let last = books.sent.entry((task_id, topic)).or_default();
            *last += 1;
            *last
        };
        if client.send(task_id, format!("topic{topic}"), &message).await.is_ok() {
            self.ledger.books().accepted.entry((task_id, topic)).or_default().push(message);
        }
    }

    /// Returns the number with which a task was spawned.
    fn number_of(&self, task_id: TaskId) -> Option<usize> {
        let info = self.world.look(self.world.store().task(task_id)).ok().flatten()?;
        info.params.decode::<Params>().ok()?.number
    }

    /// Exports a task, deletes it, and imports it again.
    async fn take_out_and_in(&self, client: &Durable, task_id: TaskId) {
        self.ledger.books().deleted.insert(task_id);
        if let Ok(export) = client.export(task_id).await
            && client.delete(task_id).await.is_ok()
            && let Err(error) = client.import(export).await
        {
            self.ledger
                .fail("import", format_args!("task {task_id} cannot be put in again: {error}"));
        }
    }

    /// Damages the row of a task that does nothing.
    fn damage(&self, user: &User, task_id: TaskId, way: usize) {
        let Ok(Some(task)) = self.world.look(self.world.store().task(task_id)) else { return };
        let idle = matches!(task.state, TaskState::Pending | TaskState::Suspended);
        // Other tasks of its key would wait for it until its row is repaired.
        if idle && task.concurrency_key.is_none() {
            match user.damage(&self.world, task_id, way) {
                Ok(true) => _ = self.ledger.books().damaged.insert(task_id),
                Ok(false) => {}
                Err(error) => self.ledger.fail("damage", format_args!("{error:#}")),
            }
        }
    }

    /// Shuts down the worker of a process, and starts the process again.
    fn deploy(&self, process: usize) {
        let worker = {
            let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
            processes.get_mut(&process).and_then(|process| process.worker.take())
        };
        let Some((place, worker)) = worker else { return };
        tokio::spawn(async move {
            worker.shutdown().await;
            if !place.is_dead() {
                place.world.crash(place.number, Duration::ZERO);
            }
        });
    }
}

fn build(builder: stepwell::DurableBuilder) -> stepwell::DurableBuilder {
    let retry = RetryStrategy::fixed(Duration::from_millis(10));
    builder.max_attempts(1_000).retry(retry).max_payload_bytes(LIMIT)
}

fn version_name(version: u8) -> String {
    format!("v{version}")
}

/// Returns the options with which a task is spawned.
fn options(spawn: &Spawn) -> SpawnOptions {
    let mut options = SpawnOptions::new().max_attempts(spawn.attempts).priority(spawn.priority);
    if let Some(once) = spawn.once {
        options = options.idempotency_key(format!("once{once}"));
    }
    options = match spawn.key {
        Some((key, Some(how))) => options.coalesced(format!("key{key}"), how),
        Some((key, None)) => options.concurrency_key(format!("key{key}")),
        None => options,
    };
    if let Some(version) = spawn.version {
        options = options.code_version(version_name(version));
    }
    if let Some(delay) = spawn.delay {
        options = options.delay(delay);
    }
    if let Some(limit) = spawn.limit {
        let limit = CancellationPolicy { max_delay: None, max_duration: Some(limit) };
        options = options.cancellation(limit);
    }
    options
}

/// Returns the task type and the parameters of a spawn; nonsense has no parameters.
fn asks_for(spawn: &Spawn) -> (&'static str, Option<Params>) {
    let params = |script, fails| {
        let Spawn { number, once, version, .. } = *spawn;
        Some(Params { number: Some(number), script, once, version, fails })
    };
    match &spawn.work {
        Work::Script(script) => (TASK, params(script.clone(), false)),
        Work::Flow(fails) => (FLOW, params(Vec::new(), *fails)),
        Work::Nonsense => (TASK, None),
    }
}

/// Spawns a task in a transaction of a user.
async fn user_spawns(ledger: Arc<Ledger>, user: Arc<User>, transact: Transact) {
    let (spawn, commits) = (&transact.spawn, transact.commits);
    let (task_type, Some(params)) = asks_for(spawn) else { return };
    if !commits {
        ledger.books().rolled_back.insert(spawn.number);
    }
    match user.spawn(&ledger.world, &transact, (task_type, params), options(spawn)).await {
        Ok(task_id) if commits => _ = ledger.books().spawned.insert(spawn.number, task_id),
        Ok(_) => {}
        Err(error) => ledger.fail("transaction", format_args!("{error:#}")),
    }
}

/// Spawns a task, and repeats the spawn where the store has refused it.
async fn spawn_task(ledger: Arc<Ledger>, client: Durable, spawn: Spawn) {
    let Spawn { number, once, key, .. } = spawn;
    let (task_type, params) = asks_for(&spawn);
    loop {
        let spawned = match &params {
            Some(params) => client.spawn_named(task_type, params).options(options(&spawn)).await,
            None => client.spawn_named(task_type, "nonsense").options(options(&spawn)).await,
        };
        match spawned {
            Ok(spawned) => {
                let mut books = ledger.books();
                books.spawned.insert(number, spawned.task_id);
                // A task that waits to start replaces this one, but does not take its idempotency
                // key.
                let coalesced = spawned.disposition == Disposition::Coalesced;
                if let Some(once) = once.filter(|_| !coalesced) {
                    books
                        .answers
                        .entry((task_type.to_owned(), once))
                        .or_default()
                        .insert(spawned.task_id);
                }
                return;
            }
            // The process has died, and the spawn may have been executed.
            Err(Error::Store(StoreError::Closed)) => return,
            Err(Error::Store(error)) if error.is_transient() => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(Error::Waiting(_)) if matches!(key, Some((_, Some(Coalesce::Reject)))) => return,
            Err(error) => return ledger.fail("spawn", error),
        }
    }
}
