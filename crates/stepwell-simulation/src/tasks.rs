//! The task type of simulated histories, which runs its script and reports to the ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select, try_join};
use stepwell::testing::Place;
use stepwell::{
    BoxFuture, Decision, Durable, Error, Kind, LogLevel, RetryStrategy, SpawnOptions, TaskContext,
    TaskError, TaskId, TaskResult,
};

use crate::database::User;
use crate::flow;
use crate::ledger::{Ledger, Who};
use crate::params::{Delivered, Params, Seen, TASK};
use crate::script::{Isolation, LIMIT, Op, Trouble, begins_with_a_wait, shares_names};

/// The name of the cleanup.
const CLEANUP: &str = "clean";

/// The state of a process that its tasks can access.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) place: Place,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) lease: Duration,
    /// Tells whether the process has the changed code.
    pub(crate) changed: bool,
    /// The version of the process's code.
    pub(crate) version: Option<u8>,
    /// The user of the database, where there is one.
    pub(crate) user: Option<Arc<User>>,
}

/// Registers the task types of a process.
pub(crate) async fn register(client: &Durable, site: &Site) -> Result<(), Error> {
    client.register_fn(TASK, task).await?;
    client.register_workflow(flow::flow(site)).await?;
    let ledger = site.ledger.clone();
    client
        .register_cleanup(CLEANUP, move |of: stepwell::TaskId| {
            ledger.books().undone.entry((of, CLEANUP.into())).or_default().push(0);
            async { Ok(()) }
        })
        .await
}

async fn task(params: Params, ctx: TaskContext) -> TaskResult<Seen> {
    let site = ctx.state::<Site>()?.clone();
    site.may_run(ctx.task_id, &params);
    let play = Player { ctx, site, seen: Mutex::default(), delivered: Delivered::default() };
    play.run(&params.script, String::new()).await?;
    Ok(play.seen.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Player {
    ctx: TaskContext,
    site: Site,
    seen: Mutex<Seen>,
    /// The steps whose results were delivered.
    delivered: Delivered,
}

/// A value that panics when it is dropped.
struct Bomb(Site);

impl Drop for Bomb {
    #[allow(clippy::panic, reason = "what panics in a destructor is what it simulates")]
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.0.place.is_dead() && !self.0.ledger.world.is_calm() {
            panic!("simulated, in a destructor");
        }
    }
}

impl Site {
    /// Checks that a task may run in this process.
    pub(crate) fn may_run(&self, task_id: TaskId, params: &Params) {
        if params.version.is_some() && params.version != self.version {
            self.ledger.fail(
                "version",
                format_args!(
                    "task {task_id} of version {:?} runs as {:?}",
                    params.version, self.version
                ),
            );
        }
    }

    /// Returns whether something goes wrong, with a chance of one in `times`.
    fn goes_wrong(&self, times: u64) -> bool {
        let world = &self.ledger.world;
        !world.is_calm() && world.dice().one_in(times)
    }

    /// Runs the work of a closure.
    #[allow(clippy::panic, reason = "a closure that panics is what it simulates")]
    pub(crate) async fn work(self, who: Who, time: u64, trouble: Trouble) -> anyhow::Result<()> {
        let _bomb =
            (trouble == Trouble::PanicsInDrop && self.goes_wrong(3)).then(|| Bomb(self.clone()));
        match trouble {
            Trouble::Kills if self.goes_wrong(3) => {
                self.place.die(self.lease / 2).await;
            }
            Trouble::Blocks if self.goes_wrong(3) => self.place.block(self.lease * 3 / 2),
            Trouble::Panics if self.goes_wrong(2) => panic!("simulated"),
            _ => {}
        }
        let mut left = time;
        while left > 0 {
            let nap = left.min(10);
            tokio::time::sleep(Duration::from_millis(nap)).await;
            left -= nap;
            self.ledger.goes_on(&self.place, who);
        }
        anyhow::ensure!(trouble != Trouble::Fails || !self.goes_wrong(2), "simulated");
        Ok(())
    }

    /// Runs the compensation of a step that returned this number.
    pub(crate) async fn undo(
        self,
        who: Who,
        name: String,
        nonce: u64,
        trouble: Trouble,
    ) -> anyhow::Result<()> {
        self.ledger.begins(&self.place, who, Kind::Compensated, &name, &[]);
        self.ledger.books().undone.entry((who.task_id, name)).or_default().push(nonce);
        let trouble = match trouble {
            Trouble::None | Trouble::Blocks => Trouble::Fails,
            trouble => trouble,
        };
        self.work(who, nonce % 7, trouble).await
    }
}

impl Player {
    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn comes(&self, name: &str) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    fn sees(&self, name: String, value: u64) {
        self.comes(&name);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((name, value));
    }

    /// Draws whether the branches are polled in the other order, which may differ each time that
    /// the code runs. The order never changes where both branches use the same names, or where one
    /// branch may end before the other one is polled.
    fn may_swap(&self, one: &[Op], other: &[Op]) -> bool {
        let waits = begins_with_a_wait(one) && begins_with_a_wait(other);
        let shares = shares_names(one) && shares_names(other);
        waits && !shares && self.site.ledger.world.dice().one_in(2)
    }

    fn run<'a>(&'a self, script: &'a [Op], path: String) -> BoxFuture<'a, TaskResult<()>> {
        Box::pin(async move {
            for (place, op) in script.iter().enumerate() {
                self.op(op, format!("{path}/{place}")).await?;
            }
            Ok(())
        })
    }

    #[allow(clippy::panic, reason = "a task that panics is what it simulates")]
    async fn op(&self, op: &Op, name: String) -> TaskResult<()> {
        let (ctx, ledger, place) = (&self.ctx, &self.site.ledger, &self.site.place);
        let millis = Duration::from_millis;
        match op {
            Op::Step { time, trouble, retries, undone } => {
                self.step(name, *time, *trouble, *retries, *undone).await?;
            }
            Op::Transaction(isolation, fails) => match &self.site.user {
                Some(user) => self.transaction(user, name, *isolation, *fails).await?,
                None => self.step(name, 0, Trouble::None, false, false).await?,
            },
            Op::Items(items) => self.items(name, *items).await?,
            Op::Big(bytes) => self.big_step(name, *bytes).await?,
            Op::Foreign(time) => tokio::time::sleep(millis(*time)).await,
            Op::Nap(time) => self.nap(&name, millis(*time)).await?,
            Op::Event(event, limit) => self.event(*event, limit.map(millis)).await?,
            Op::Emit(event) => {
                let payload = ledger.world.dice().roll(1 << 40);
                ctx.emit_event(("event", *event), &payload).await?;
            }
            Op::Message(topic) => {
                ctx.recv::<u64>(format!("topic{topic}"), None).await?;
            }
            Op::Approval => {
                let decision: Decision<u64> = ctx.await_approval(name.as_str(), &0).await?;
                drop(decision);
            }
            Op::Child(script, key) => {
                let params = Params::of(script.clone());
                let options = SpawnOptions::new();
                let options = match key {
                    Some(key) => options.idempotency_key(format!("child{key}")),
                    None => options,
                };
                let child = ctx
                    .spawn_named::<_, Seen>(name.as_str(), TASK, &params)
                    .options(options)
                    .await?;
                match ctx.join(&child).await {
                    Ok(_) | Err(TaskError::Child { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Op::Both(one, other) => {
                let (first, second) = self.branches(one, other, name);
                try_join(first, second).await?;
            }
            Op::Race(one, other) => {
                let (first, second) = self.branches(one, other, name);
                match select(first, second).await {
                    Either::Left((result, _)) | Either::Right((result, _)) => result?,
                }
            }
            Op::Cleanup(discarded) => self.cleanup(*discarded).await?,
            Op::Notes => {
                ctx.log(LogLevel::Info, "simulated", []);
                ctx.progress(1, 2, None);
            }
            Op::Patch => self.patched_step(name).await?,
            Op::Panics => {
                if self.site.goes_wrong(2) && !place.is_dead() {
                    panic!("simulated, in the task's own code");
                }
            }
            Op::Fails => return Err(TaskError::permanent(anyhow::anyhow!("it is lost"))),
        }
        Ok(())
    }

    /// Sleeps for a time.
    async fn nap(&self, name: &str, time: Duration) -> TaskResult<()> {
        let (ledger, task_id) = (&self.site.ledger, self.ctx.task_id);
        ledger.sleeps(task_id, name, time);
        self.ctx.sleep_for(name, time).await?;
        ledger.wakes(task_id, name);
        Ok(())
    }

    /// Records a cleanup, and discards it where it is not needed.
    async fn cleanup(&self, discarded: bool) -> TaskResult<()> {
        let cleanup = self.ctx.cleanup(CLEANUP, &self.ctx.task_id).await?;
        if discarded {
            self.ctx.discard(&cleanup).await?;
        }
        Ok(())
    }

    /// Runs a step whose name says whether the changed code runs it.
    async fn patched_step(&self, name: String) -> TaskResult<()> {
        let changed = self.site.changed && self.ctx.patched(name.as_str())?;
        let way = if changed { "new" } else { "old" };
        self.step(name + way, 0, Trouble::None, false, false).await
    }

    /// Returns two branches, in the order in which they are polled.
    fn branches<'a>(
        &'a self,
        one: &'a [Op],
        other: &'a [Op],
        name: String,
    ) -> (BoxFuture<'a, TaskResult<()>>, BoxFuture<'a, TaskResult<()>>) {
        let swapped = self.may_swap(one, other);
        let (one, other) = (self.run(one, name.clone() + "l"), self.run(other, name + "r"));
        if swapped { (other, one) } else { (one, other) }
    }

    /// Runs a step that is a transaction of the user's.
    async fn transaction(
        &self,
        user: &User,
        name: String,
        isolation: Isolation,
        fails: bool,
    ) -> TaskResult<()> {
        let (ledger, task_id, step) = (self.site.ledger.clone(), self.ctx.task_id, name.clone());
        let fails = fails && self.site.goes_wrong(2);
        let write = move || (ledger.transacts(task_id, &step, fails), fails);
        match user.transaction(&self.ctx, &name, isolation, write).await {
            Ok(nonce) => {
                self.sees(name, nonce);
                Ok(())
            }
            Err(error) => {
                let text = format!("{error:?}");
                let may_be =
                    ["simulated", "could not serialize"].iter().any(|why| text.contains(why));
                if !matches!(error, TaskError::Control(_)) && !may_be {
                    self.site.ledger.fail("transaction", &text);
                }
                Err(error)
            }
        }
    }

    /// Runs a step over so many items.
    async fn items(&self, name: String, items: u64) -> TaskResult<()> {
        let ctx = &self.ctx;
        let seen = self.seen();
        let work = |item: u64| {
            let (site, who, seen, item_name) =
                (self.site.clone(), Who::from(ctx), seen.clone(), format!("{name}[{item}]"));
            async move {
                site.ledger.begins(&site.place, who, Kind::Step, &item_name, &seen);
                site.work(who, item % 5, Trouble::Fails).await
            }
        };
        ctx.items(name.as_str(), 0..usize::try_from(items).unwrap_or(0))
            .concurrency(3)
            .each(|item| work(item as u64))
            .await?;
        self.comes(&name);
        Ok(())
    }

    /// Runs a step with a result of so many bytes, which is refused above the limit.
    async fn big_step(&self, name: String, bytes: usize) -> TaskResult<()> {
        let result = self.ctx.step(name.as_str(), || async { Ok("x".repeat(bytes)) }).await;
        match result {
            Ok(text) if text.len() + 2 <= LIMIT => self.comes(&name),
            Err(TaskError::Control(control)) => return Err(control.into()),
            Err(_) if bytes + 2 > LIMIT => {}
            other => {
                self.site.ledger.fail("limits", format_args!("{bytes} bytes gave {other:?}"));
            }
        }
        Ok(())
    }

    /// Waits for an event, at most for a time.
    async fn event(&self, event: u8, limit: Option<Duration>) -> TaskResult<()> {
        match self.ctx.await_event::<u64>(("event", event), limit).await {
            Ok(payload) => self.site.ledger.comes(&event_name(event), payload),
            Err(TaskError::Timeout { .. }) if limit.is_some() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    #[allow(clippy::panic, reason = "a compensation that panics is what it simulates")]
    async fn step(
        &self,
        name: String,
        time: u64,
        trouble: Trouble,
        retries: bool,
        undone: bool,
    ) -> TaskResult<()> {
        let seen = self.seen();
        let closure = {
            let (site, who, name) = (self.site.clone(), Who::from(&self.ctx), name.clone());
            let delivered = self.delivered.clone();
            move || {
                let (site, name, seen) = (site.clone(), name.clone(), seen.clone());
                let delivered = delivered.clone();
                async move {
                    site.ledger.is_no_replay(&site.place, who, &name, &delivered);
                    let nonce = site.ledger.begins(&site.place, who, Kind::Step, &name, &seen);
                    site.work(who, time, trouble).await?;
                    Ok(nonce)
                }
            }
        };
        let mut step = self.ctx.step(name.as_str(), closure);
        if retries {
            step = step.retry(RetryStrategy::fixed(Duration::from_millis(5))).max_attempts(4);
        }
        if undone {
            // The context is captured, because users capture it as well.
            let (site, ctx, name) = (self.site.clone(), self.ctx.clone(), name.clone());
            step = step.compensate(move |nonce: u64| {
                let (site, who, name) = (site.clone(), Who::from(&ctx), name.clone());
                if trouble == Trouble::Panics && !site.place.is_dead() && site.goes_wrong(3) {
                    panic!("simulated, before a compensation's future");
                }
                async move { site.undo(who, name, nonce, trouble).await }
            });
        }
        let nonce = step.await?;
        self.sees(name, nonce);
        Ok(())
    }
}

/// Returns the name of the event with a number.
pub(crate) fn event_name(event: u8) -> String {
    format!("event:{event}")
}
