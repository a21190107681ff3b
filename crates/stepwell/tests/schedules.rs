//! Schedules, in virtual time: every tick spawns one task, however many workers there are, and
//! whichever of them die.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use stepwell::store::{after, until};
use stepwell::testing::{Dice, Harness, Intercepted, Process, worker_options};
use stepwell::*;
use tokio::sync::Notify;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Takes as long as it is told.
#[stepwell::task]
async fn work(minutes: u32, ctx: TaskContext) -> TaskResult<()> {
    ctx.step("work", || async { Ok(sleep(minutes * MINUTE).await) }).await
}

async fn start(harness: &Harness) -> Process {
    start_with(harness, worker_options()).await
}

async fn start_with(harness: &Harness, options: WorkerOptions) -> Process {
    let process = harness.start().await;
    process.register::<work>().await.unwrap();
    process.start_worker(options).await;
    process
}

async fn tasks(store: &dyn Store) -> Vec<TaskInfo> {
    let mut tasks =
        store.tasks(TaskFilter { limit: 10_000, ..TaskFilter::default() }).await.unwrap().items;
    tasks.sort_by_key(tick);
    tasks
}

fn tick(task: &TaskInfo) -> Timestamp {
    task.headers[TICK_HEADER].as_str().unwrap().parse().unwrap()
}

/// The times of day of the ticks that have spawned a task.
async fn ticks(harness: &Harness) -> Vec<String> {
    tasks(&harness.store())
        .await
        .iter()
        .map(|task| tick(task).strftime("%H:%M").to_string())
        .collect()
}

fn hourly() -> Schedule {
    Schedule::cron("hourly", "0 * * * *")
}

#[tokio::test(start_paused = true)]
async fn each_tick_spawns_one_task_that_knows_its_time() {
    let harness = Harness::new();
    let process = start(&harness).await;
    let options = SpawnOptions::new().priority(3).header("for", "you").max_attempts(2);
    let schedule = Schedule::cron("often", "*/20 * * * *").options(options);
    let info = process.schedules().put::<work>(schedule, 1).await.unwrap();
    assert_eq!(info.next_at.unwrap().to_string(), "2026-01-01T00:20:00Z");
    sleep(HOUR + 2 * MINUTE).await;
    assert_eq!(ticks(&harness).await, ["00:20", "00:40", "01:00"]);
    let tasks = tasks(&harness.store()).await;
    for task in &tasks {
        assert!(
            until(tick(task), task.spawned_at) < SECOND / 100 && task.spawned_at >= tick(task),
            "{task:?}"
        );
        assert_eq!(task.state, TaskState::Completed);
        assert_eq!((task.params.as_str(), task.priority, task.max_attempts), ("1", 3, 2));
        assert_eq!(task.headers["for"], "you");
    }
    let info = process.schedules().get("often").await.unwrap().unwrap();
    assert_eq!(info.last_task, Some(tasks[2].task_id));
    assert_eq!(
        (info.last_tick, info.next_tick),
        (Some(tick(&tasks[2])), Some("2026-01-01T01:20:00Z".parse().unwrap()))
    );
    assert_eq!(process.schedules().list().await.unwrap(), [info]);
    process.schedules().delete("often").await.unwrap();
    sleep(HOUR).await;
    assert_eq!(harness_tasks(&harness).await, 3);
}

async fn harness_tasks(harness: &Harness) -> usize {
    tasks(&harness.store()).await.len()
}

#[tokio::test(start_paused = true)]
async fn a_tick_spawns_one_task_however_many_workers_come_to_it() {
    for processes in [2, 5] {
        let harness = Harness::new();
        let mut running = Vec::new();
        for _ in 0..processes {
            let process = start_with(&harness, WorkerOptions::new()).await;
            process.start_worker(WorkerOptions::new()).await;
            running.push(process);
        }
        // All of them put it at the same time.
        let puts = running
            .iter()
            .map(|process| process.schedules().put::<work>(Schedule::every("second", SECOND), 0));
        join_all(puts).await.into_iter().for_each(|put| drop(put.unwrap()));
        let minutes =
            Schedule::cron("minute", "* * * * *").options(SpawnOptions::new().priority(1));
        running[0].schedules().put::<work>(minutes, 0).await.unwrap();
        sleep(10 * MINUTE + SECOND / 2).await;
        let all = tasks(&harness.store()).await;
        let (minutes, seconds): (Vec<_>, Vec<_>) = all.iter().partition(|task| task.priority == 1);
        let seconds: Vec<_> = seconds.into_iter().map(tick).collect();
        assert_eq!(minutes.len(), 10);
        assert_eq!(seconds.len(), 600);
        assert!(seconds.windows(2).all(|pair| until(pair[0], pair[1]) == SECOND), "{seconds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_schedule_has_no_ticks_and_none_to_catch_up_with() {
    let harness = Harness::new();
    let process = start(&harness).await;
    process.schedules().put::<work>(hourly().catch_up(CatchUp::All), 0).await.unwrap();
    sleep(HOUR + MINUTE).await;
    process.schedules().pause("hourly").await.unwrap();
    let info = process.schedules().get("hourly").await.unwrap().unwrap();
    assert!(info.paused && info.next_at.is_none());
    sleep(3 * HOUR).await;
    assert_eq!(ticks(&harness).await, ["01:00"]);
    // A program that starts again does not resume what was paused.
    let again = process.schedules().put::<work>(hourly(), 0).await.unwrap();
    assert!(again.paused && again.next_at.is_none());
    process.schedules().resume("hourly").await.unwrap();
    process.schedules().resume("hourly").await.unwrap();
    sleep(2 * HOUR).await;
    assert_eq!(ticks(&harness).await, ["01:00", "05:00", "06:00"]);
}

/// What comes of it when nobody is there between 01:30 and 05:10.
async fn after_downtime(schedule: Schedule) -> Vec<String> {
    let harness = Harness::new();
    let first = start(&harness).await;
    first.schedules().put::<work>(schedule.clone(), 0).await.unwrap();
    sleep(HOUR + HOUR / 2).await;
    first.kill().await;
    sleep(3 * HOUR + 40 * MINUTE).await;
    let second = harness.start().await;
    second.register::<work>().await.unwrap();
    // As programs do when they start: this is no new schedule.
    second.schedules().put::<work>(schedule, 0).await.unwrap();
    second.start_worker(worker_options()).await;
    sleep(HOUR + MINUTE / 2).await;
    ticks(&harness).await
}

#[tokio::test(start_paused = true)]
async fn missed_ticks_are_left_out_or_made_up_for_once_or_each() {
    assert_eq!(after_downtime(hourly().catch_up(CatchUp::Skip)).await, ["01:00", "06:00"]);
    assert_eq!(after_downtime(hourly()).await, ["01:00", "05:00", "06:00"], "one is the default");
    let all = ["01:00", "02:00", "03:00", "04:00", "05:00", "06:00"];
    assert_eq!(after_downtime(hourly().catch_up(CatchUp::All)).await, all);
    let one = hourly().catch_up(CatchUp::All).overlap(Overlap::Skip);
    assert_eq!(after_downtime(one).await, ["01:00", "05:00", "06:00"], "all of them would overlap");

    // More than one change spawns at a time.
    let often = Schedule::cron("often", "* * * * *").catch_up(CatchUp::All);
    let often = after_downtime(often).await;
    assert_eq!(often.len(), often.iter().collect::<BTreeSet<_>>().len());
    assert_eq!((often.len(), often[0].as_str(), often[369].as_str()), (370, "00:01", "06:10"));
    let every = Schedule::every("every", 7 * MINUTE).catch_up(CatchUp::All);
    assert_eq!(after_downtime(every).await.len(), 370 / 7);
    let every = after_downtime(Schedule::every("every", 7 * MINUTE)).await;
    assert_eq!(
        every[11..14],
        ["01:24", "05:08", "05:15"].map(String::from)[..],
        "it keeps its beat: {every:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_is_come_to_within_a_minute_was_not_missed() {
    for (late, expected) in [(59, vec!["01:00"]), (61, vec![])] {
        let harness = Harness::new();
        let process = start(&harness).await;
        process.schedules().put::<work>(hourly().catch_up(CatchUp::Skip), 0).await.unwrap();
        sleep(HOUR / 2).await;
        process.kill().await;
        sleep(HOUR / 2 + late * SECOND).await;
        let _process = start(&harness).await;
        sleep(SECOND).await;
        assert_eq!(ticks(&harness).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_is_put_anew_goes_on_or_starts_anew_when_its_times_have_changed() {
    let harness = Harness::new();
    let process = start(&harness).await;
    process.schedules().put::<work>(hourly(), 0).await.unwrap();
    sleep(HOUR + MINUTE).await;
    process.schedules().put::<work>(hourly().overlap(Overlap::Skip), 7).await.unwrap();
    let info = process.schedules().get("hourly").await.unwrap().unwrap();
    assert_eq!((info.params.as_str(), info.overlap), ("7", Overlap::Skip));
    assert_eq!(info.next_at.unwrap().to_string(), "2026-01-01T02:00:00Z");
    assert!(info.last_task.is_some() && info.last_tick.is_some());
    let other = Schedule::cron("hourly", "30 * * * *").time_zone("Asia/Kolkata");
    let info = process.schedules().put::<work>(other, 0).await.unwrap();
    assert_eq!(info.next_at.unwrap().to_string(), "2026-01-01T02:00:00Z", "half an hour is theirs");
    let info = process.schedules().put::<work>(Schedule::every("hourly", HOUR), 0).await.unwrap();
    assert_eq!(info.next_at, Some(after(harness.now(), HOUR)));
    assert_eq!(process.schedules().list().await.unwrap().len(), 1);
    sleep(2 * HOUR + MINUTE).await;
    assert_eq!(ticks(&harness).await, ["01:00", "02:01", "03:01"]);
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_schedule_overlap_or_not_as_it_says() {
    for (overlap, expected) in [
        (Overlap::Allow, vec!["00:10", "00:20", "00:30", "00:40", "00:50", "01:00"]),
        (Overlap::Skip, vec!["00:10", "00:40"]),
    ] {
        let harness = Harness::new();
        let first = start_with(&harness, WorkerOptions::new()).await;
        let _second = start_with(&harness, WorkerOptions::new()).await;
        let schedule = Schedule::cron("slow", "*/10 * * * *").overlap(overlap);
        first.schedules().put::<work>(schedule, 25).await.unwrap();
        sleep(HOUR + MINUTE).await;
        assert_eq!(ticks(&harness).await, expected);
        let info = first.schedules().get("slow").await.unwrap().unwrap();
        assert_eq!(
            info.last_tick.unwrap().to_string(),
            "2026-01-01T01:00:00Z",
            "a tick without a task is one"
        );

        let running = first.task(info.last_task.unwrap()).await.unwrap().unwrap();
        let triggered = first.schedules().trigger("slow").await.unwrap();
        assert_eq!(triggered.created(), overlap == Overlap::Allow);
        if overlap == Overlap::Skip {
            assert_eq!((triggered.task_id, triggered.run_id), (running.task_id, running.run_id));
            first.cancel(running.task_id).await.unwrap();
            let _ = first.wait::<()>(running.task_id).await;
            assert!(first.schedules().trigger("slow").await.unwrap().created());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_can_be_triggered_beside_its_ticks() {
    let harness = Harness::new();
    let process = start(&harness).await;
    let info = process.schedules().put::<work>(hourly(), 0).await.unwrap();
    sleep(MINUTE).await;
    let triggered = process.schedules().trigger("hourly").await.unwrap();
    process.wait::<()>(triggered.task_id).await.unwrap();
    let task = process.task(triggered.task_id).await.unwrap().unwrap();
    assert!(triggered.created());
    assert!(
        until(after(Timestamp::UNIX_EPOCH, Duration::ZERO), tick(&task)) > HOUR
            && tick(&task) <= task.spawned_at
    );
    let now = process.schedules().get("hourly").await.unwrap().unwrap();
    assert_eq!(
        (now.next_at, now.last_tick, now.last_task),
        (info.next_at, None, Some(triggered.task_id))
    );
    process.schedules().pause("hourly").await.unwrap();
    assert!(
        process.schedules().trigger("hourly").await.unwrap().created(),
        "also while it is paused"
    );
    process.schedules().resume("hourly").await.unwrap();
    sleep(HOUR).await;
    assert_eq!(harness_tasks(&harness).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_neither_repeats_ticks_nor_loses_them() {
    let harness = Harness::new();
    let process = start_with(&harness, WorkerOptions::new()).await;
    process.schedules().put::<work>(hourly().catch_up(CatchUp::All), 0).await.unwrap();
    sleep(HOUR + MINUTE).await;
    harness.jump(2 * 3_600_000_000);
    sleep(2 * SECOND).await;
    assert_eq!(ticks(&harness).await, ["01:00", "02:00", "03:00"], "within a poll interval");
    harness.jump(-90 * 60_000_000);
    sleep(HOUR).await;
    assert_eq!(ticks(&harness).await.len(), 3, "02:00 and 03:00 were there");
    sleep(2 * HOUR).await;
    assert_eq!(ticks(&harness).await, ["01:00", "02:00", "03:00", "04:00"]);
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_tasks_of_a_tick() {
    let harness = Harness::new();
    let process = start(&harness).await;
    for n in 0..30 {
        let schedule = Schedule::cron(format!("schedule {n}"), "0 * * * *").jitter(10 * MINUTE);
        process.schedules().put::<work>(schedule, 0).await.unwrap();
    }
    sleep(2 * HOUR + 11 * MINUTE).await;
    let all = tasks(&harness.store()).await;
    assert_eq!(all.len(), 60);
    let mut delays: Vec<_> = all.iter().map(|task| until(tick(task), task.spawned_at)).collect();
    delays.sort_unstable();
    assert!(
        delays[0] < 2 * MINUTE && delays[59] > 8 * MINUTE && delays[59] < 10 * MINUTE,
        "{delays:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_schedule_of_another_process_is_seen_within_a_poll_interval() {
    let harness = Harness::new();
    let (client, worker) =
        (harness.start().await, start_with(&harness, WorkerOptions::new()).await);
    sleep(MINUTE).await;
    client.schedules().put::<work>(Schedule::every("second", SECOND), 0).await.unwrap();
    sleep(10 * SECOND + SECOND / 2).await;
    assert_eq!(harness_tasks(&harness).await, 10);
    worker.kill().await;
    sleep(MINUTE).await;
    assert_eq!(harness_tasks(&harness).await, 10, "without a worker nothing ticks");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_schedule_is_refused_and_changes_nothing() {
    let harness = Harness::new();
    let process = start(&harness).await;
    process.schedules().put::<work>(hourly(), 0).await.unwrap();
    let before = process.schedules().list().await.unwrap();
    let options = |options| hourly().options(options);
    let bad = [
        (
            Schedule::cron("hourly", "61 * * * *"),
            "the schedule \"hourly\": \"61 * * * *\" is no cron pattern",
        ),
        (Schedule::cron("hourly", ""), "is no cron pattern"),
        (Schedule::cron("hourly", "0 0 30 2 *"), "never ticks"),
        (Schedule::cron("hourly", "0 0 0 1 1 * 2025"), "never ticks"),
        (
            hourly().time_zone("Europe/Atlantis"),
            "the time zone \"Europe/Atlantis\" is unknown: use a name",
        ),
        (Schedule::every("hourly", Duration::ZERO), "an interval of 0ns is too short"),
        (Schedule::cron("", "0 * * * *"), "a name must not be empty"),
        (Schedule::cron("x".repeat(600), "0 * * * *"), "the limit is 512"),
        (options(SpawnOptions::new().idempotency_key("one")), "cannot have an idempotency key"),
        (
            options(SpawnOptions::new().start_at(harness.now())),
            "cannot have an idempotency key or a fixed start",
        ),
        (options(SpawnOptions::new().queue("")), "a name must not be empty"),
        (options(SpawnOptions::new().concurrency_key("a\0b")), "holds a NUL"),
    ];
    for (schedule, expected) in bad {
        let error = process.schedules().put::<work>(schedule, 0).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let large =
        process.schedules().put_named(hourly(), "work", &"x".repeat(5 << 20)).await.unwrap_err();
    assert!(matches!(large, Error::Payload { .. }), "{large}");
    let unnamed = process.schedules().put_named(hourly(), "", &0).await.unwrap_err();
    assert!(matches!(unnamed, Error::Name(_)), "{unnamed}");
    assert_eq!(process.schedules().list().await.unwrap(), before);

    assert_eq!(process.schedules().get("daily").await.unwrap(), None);
    let unknown = [
        process.schedules().pause("daily").await.unwrap_err(),
        process.schedules().resume("daily").await.unwrap_err(),
        process.schedules().delete("daily").await.unwrap_err(),
        process.schedules().trigger("daily").await.unwrap_err(),
    ];
    for error in unknown {
        assert!(error.to_string().contains("there is no schedule \"daily\""), "{error}");
    }
}

/// A schedule that a newer program wrote, say, is left to those who can read it, and holds up no
/// others.
#[tokio::test(start_paused = true)]
async fn a_schedule_that_cannot_be_read_is_left_alone_and_can_be_replaced() {
    use stepwell::store::{Batch, ScheduleAction, ScheduleChange, SchedulePlan};
    let harness = Harness::new();
    let process = start(&harness).await;
    let plan = SchedulePlan {
        version: uuid::Uuid::nil().into(),
        definition: Payload::from_json("{\"timing\":\"by the moon\"}"),
        next_at: Some(harness.now()),
    };
    let change =
        ScheduleChange { name: Name::new("odd").unwrap(), action: ScheduleAction::Create(plan) };
    harness
        .store()
        .commit(Batch { schedules: vec![change], ..Batch::default() }.into())
        .await
        .unwrap();
    process.schedules().put::<work>(hourly(), 0).await.unwrap();
    sleep(HOUR + MINUTE).await;
    assert_eq!(ticks(&harness).await, ["01:00"]);
    assert_eq!(process.schedules().list().await.unwrap().len(), 1, "the other one");
    let error = process.schedules().get("odd").await.unwrap_err().to_string();
    assert!(error.contains("the schedule odd: the JSON does not fit"), "{error}");
    process.schedules().put::<work>(Schedule::cron("odd", "30 * * * *"), 0).await.unwrap();
    sleep(HOUR / 2).await;
    assert_eq!(ticks(&harness).await, ["01:00", "01:30"]);
    process.schedules().delete("odd").await.unwrap();
}

/// The store of a process that dies at its `at`-th commit with a change in it, which is still
/// `applied` or not.
fn mortal(store: Arc<dyn Store>, at: usize, applied: bool, died: Arc<Notify>) -> Arc<dyn Store> {
    let commits = AtomicUsize::new(0);
    Arc::new(Intercepted::new(store, move |store, batch| {
        let counts = usize::from(
            !batch.has_only_claims() || batch.claims.iter().any(|claim| claim.limit > 0),
        );
        let number = commits.fetch_add(counts, Ordering::SeqCst) + counts;
        if number < at || (number == at && counts == 0) {
            return store.commit(batch.into());
        }
        let last =
            (number == at).then(|| (applied.then(|| store.commit(batch.into())), died.clone()));
        Box::pin(async move {
            if let Some((applied, died)) = last {
                if let Some(applied) = applied {
                    applied.await?;
                }
                died.notify_one();
            }
            std::future::pending().await
        })
    }))
}

/// A life of the program: it puts its schedules, and works until the tasks of five ticks of each
/// have ended.
async fn live(process: &Process) {
    process.register::<work>().await.unwrap();
    let every = Schedule::every("every", SECOND).catch_up(CatchUp::All);
    process.schedules().put::<work>(every, 0).await.unwrap();
    let options = SpawnOptions::new().priority(1);
    let cron = Schedule::cron("cron", "*/2 * * * * *").overlap(Overlap::Skip).options(options);
    process.schedules().put::<work>(cron, 0).await.unwrap();
    process.start_worker(WorkerOptions::new().lease(SECOND / 2)).await;
    loop {
        let ended = tasks(process.store())
            .await
            .into_iter()
            .filter(|task| task.state == TaskState::Completed);
        let (cron, every): (Vec<_>, Vec<_>) = ended.partition(|task| task.priority == 1);
        if cron.len() >= 5 && every.len() >= 5 {
            return;
        }
        sleep(SECOND / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_or_after_any_commit_neither_loses_a_tick_nor_repeats_it() {
    let mut cases = 0;
    'cases: for at in 1.. {
        for applied in [true, false] {
            let harness = Harness::new();
            let died = Arc::new(Notify::new());
            let store = mortal(Arc::new(harness.store()), at, applied, died.clone());
            let process = harness.start_on(store, |builder| builder).await.unwrap();
            tokio::select! {
                () = live(&process) => break 'cases,
                () = died.notified() => {}
            }
            process.kill().await;
            // Long enough for ticks to be missed.
            sleep(3 * SECOND).await;
            let process = harness.start().await;
            let lived = tokio::time::timeout(MINUTE, live(&process)).await;
            assert!(lived.is_ok(), "commit {at}, applied {applied}: stuck");
            process.kill().await;
            let all = tasks(&harness.store()).await;
            let (cron, every): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|task| task.priority == 1);
            let every: Vec<_> = every.iter().map(tick).collect();
            let gaps = every.windows(2).map(|pair| until(pair[0], pair[1]));
            assert!(
                gaps.clone().all(|gap| gap == SECOND),
                "commit {at}, applied {applied}: {every:?}"
            );
            let cron: Vec<_> = cron.iter().map(tick).collect();
            let once = cron.iter().collect::<BTreeSet<_>>().len() == cron.len();
            assert!(once, "commit {at}, applied {applied}: {cron:?}");
            cases += 1;
        }
    }
    assert!(cases > 60, "only {cases} cases");
}

/// A process whose commits take their time, and fail now and then.
async fn start_faulty(harness: &Harness, dice: &Arc<Dice>) -> Process {
    let dice = dice.clone();
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let dice = dice.clone();
        Box::pin(async move {
            sleep(dice.roll(30) as u32 * SECOND / 1000).await;
            if dice.roll(10) == 0 {
                return Err(StoreError::Full("simulated".into()));
            }
            let committed = store.commit(batch.into()).await;
            sleep(dice.roll(30) as u32 * SECOND / 1000).await;
            committed
        })
    });
    let build = |builder: DurableBuilder| {
        builder.retry(RetryStrategy::fixed(SECOND / 100)).max_attempts(1000)
    };
    let process = harness.start_on(Arc::new(store), build).await.unwrap();
    process.register::<work>().await.unwrap();
    process.start_worker(WorkerOptions::new().lease(SECOND / 2)).await;
    process
}

/// Processes die and start, the store fails and is slow, and a client changes the schedule
/// meanwhile.
#[tokio::test(start_paused = true)]
async fn whatever_happens_every_tick_spawns_one_task() {
    for seed in 0..60 {
        let harness = Harness::new();
        let dice = Arc::new(Dice::new(seed));
        let client = harness.start().await;
        client
            .schedules()
            .put::<work>(Schedule::every("every", SECOND).catch_up(CatchUp::All), 0)
            .await
            .unwrap();
        let begin = harness.now();
        let mut processes = Vec::new();
        for _ in 0..3 {
            processes.push(start_faulty(&harness, &dice).await);
        }
        for round in 0..20 {
            sleep(dice.roll(2000) as u32 * SECOND / 1000).await;
            match dice.roll(4) {
                0 => processes.swap_remove(dice.roll(3) as usize).kill().await,
                1 => {
                    let schedule = Schedule::every("every", SECOND).catch_up(CatchUp::All);
                    client.schedules().put::<work>(schedule, 0).await.unwrap();
                }
                2 => {
                    let schedule = Schedule::every("every", SECOND).catch_up(CatchUp::All);
                    let options = SpawnOptions::new().header("round", round);
                    client.schedules().put::<work>(schedule.options(options), 0).await.unwrap();
                }
                _ => {}
            }
            if processes.len() < 3 {
                processes.push(start_faulty(&harness, &dice).await);
            }
        }
        // All that is due by now comes to be.
        let expected = (until(begin, harness.now()).as_secs()) as usize;
        let caught_up = async {
            while harness_tasks(&harness).await < expected {
                sleep(SECOND / 10).await;
            }
        };
        assert!(
            tokio::time::timeout(MINUTE, caught_up).await.is_ok(),
            "seed {seed}: ticks are lost"
        );
        let ticks: Vec<_> = tasks(&harness.store()).await.iter().map(tick).collect();
        assert_eq!(ticks[0], after(begin, SECOND), "seed {seed}");
        let gaps = ticks.windows(2).map(|pair| until(pair[0], pair[1]));
        assert!(gaps.clone().all(|gap| gap == SECOND), "seed {seed}: {ticks:?}");
        for process in processes {
            process.kill().await;
        }
    }
}

/// The engine's own header has room beside them.
#[tokio::test(start_paused = true)]
async fn a_schedule_with_headers_at_their_limit_ticks() {
    let harness = Harness::new();
    let process = start(&harness).await;
    let with = |bytes: usize| {
        // With the rest of `{"a":""}`.
        let options = SpawnOptions::new().header("a", "x".repeat(bytes - 8));
        Schedule::every("full", SECOND).options(options)
    };
    assert!(process.schedules().put::<work>(with(MAX_HEADERS_BYTES + 1), 0).await.is_err());
    process.schedules().put::<work>(with(MAX_HEADERS_BYTES), 0).await.unwrap();
    sleep(10 * SECOND).await;
    let spawned = tasks(&harness.store()).await;
    assert!(spawned.len() >= 3, "it spawned {} tasks", spawned.len());
    let task = spawned[0].task_id;
    let export = process.export(task).await.unwrap();
    process.schedules().delete("full").await.unwrap();
    process.wait::<()>(task).await.unwrap();
    process.delete(task).await.unwrap();
    process.import(export).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn schedules_that_a_worker_cannot_use_are_in_nobodys_way() {
    use stepwell::store::{Batch, ScheduleAction, ScheduleChange, SchedulePlan};
    let harness = Harness::new();
    let process = start(&harness).await;
    let odd = (0..250).map(|n| {
        let plan = SchedulePlan {
            version: uuid::Uuid::nil().into(),
            definition: Payload::from_json("{\"timing\":\"by the moon\"}"),
            next_at: Some(harness.now()),
        };
        ScheduleChange {
            name: Name::new(format!("odd {n}")).unwrap(),
            action: ScheduleAction::Create(plan),
        }
    });
    harness
        .store()
        .commit(Batch { schedules: odd.collect(), ..Batch::default() }.into())
        .await
        .unwrap();
    process.schedules().put::<work>(hourly(), 0).await.unwrap();
    sleep(2 * HOUR + MINUTE).await;
    assert_eq!(ticks(&harness).await, ["01:00", "02:00"]);
}

/// One of them the store refuses; the others tick.
#[tokio::test(start_paused = true)]
async fn a_tick_that_the_store_refuses_holds_up_no_other() {
    let harness = Harness::new();
    let store = Intercepted::new(Arc::new(harness.store()), |store, batch| {
        if batch
            .schedules
            .iter()
            .any(|change| change.name.as_str() == "bad" && !change.spawns().is_empty())
        {
            return Box::pin(async { Err(StoreError::Backend("not this one".into())) });
        }
        store.commit(batch.into())
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    process.register::<work>().await.unwrap();
    process.start_worker(worker_options()).await;
    process.schedules().put::<work>(Schedule::cron("bad", "0 * * * *"), 0).await.unwrap();
    process.schedules().put::<work>(hourly(), 0).await.unwrap();
    sleep(2 * HOUR + SECOND).await;
    assert_eq!(ticks(&harness).await, ["01:00", "02:00"]);
}
