//! Every command of the program, on a database with tasks of every sort: what it prints, and how it
//! exits.
//!
//! To accept what has changed: `INSTA_UPDATE=always cargo test -p stepwell-cli`, and read the
//! difference.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use stepwell::sqlite::rusqlite::Connection;
use stepwell::{
    Durable, Error, LogLevel, Schedule, SpawnOptions, SpawnResult, TaskContext, TaskId, TaskResult,
    TaskState, WorkerOptions,
};
use tempfile::TempDir;

#[stepwell::task]
async fn order(item: String, ctx: TaskContext) -> TaskResult<String> {
    ctx.log(LogLevel::Info, "the order is taken", [("item", item.clone().into())]);
    let receipt = ctx
        .step("charge", || async { Ok(format!("receipt for {item}")) })
        .compensate(|_| async { Ok(()) })
        .await?;
    if item == "anvil" {
        ctx.step("pack", || async {
            Err::<(), _>(anyhow::anyhow!("it is 200 kg").context("too heavy"))
        })
        .await?;
    }
    let child = ctx.spawn_named::<_, String>("parcel", "ship", &item).await?;
    Ok(format!("{receipt}, {}", ctx.join(&child).await?))
}

#[stepwell::task]
async fn ship(item: String, ctx: TaskContext) -> TaskResult<String> {
    ctx.step("ship\u{1b}[31m\n", || async { Ok(format!("parcel with {item}")) }).await
}

#[stepwell::task]
async fn refund(amount: u64, ctx: TaskContext) -> TaskResult<()> {
    ctx.await_approval::<u64>("manager", &amount).assign("ada").await.map(drop)
}

/// A database with tasks of every sort, that no worker runs any longer.
struct World {
    dir: TempDir,
    shipped: TaskId,
    failed: TaskId,
    refunds: Vec<TaskId>,
    later: TaskId,
}

/// Ids sort by the millisecond.
async fn next_millisecond() {
    let millis = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let now = millis();
    while millis() == now {
        tokio::task::yield_now().await;
    }
}

async fn spawned(spawn: impl IntoFuture<Output = Result<SpawnResult, Error>>) -> TaskId {
    next_millisecond().await;
    spawn.await.unwrap().task_id
}

async fn suspended(client: &Durable, task_id: TaskId) {
    while client.task(task_id).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::task::yield_now().await;
    }
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("stepwell.db").display());
        let client = Durable::builder().database_url(url).build().await.unwrap();
        client.register::<order>().await.unwrap();
        client.register::<ship>().await.unwrap();
        client.register::<refund>().await.unwrap();
        client.start_worker(WorkerOptions::new()).await;
        let options = || SpawnOptions::new().max_attempts(1).label("tenant", "acme");
        let shipped = spawned(client.spawn::<order>("feather".into()).options(options())).await;
        client.wait::<String>(shipped).await.unwrap();
        let failed = spawned(
            client.spawn::<order>("anvil".into()).options(options().idempotency_key("a-1")),
        )
        .await;
        client.wait::<String>(failed).await.unwrap_err();
        let mut refunds = Vec::new();
        for amount in [5, 7, 9] {
            let task = spawned(client.spawn::<refund>(amount)).await;
            suspended(&client, task).await;
            refunds.push(task);
        }
        let options = SpawnOptions::new().queue("slow").delay(Duration::from_secs(86_400));
        let later = spawned(client.spawn_named("order", "ox").options(options)).await;
        let nightly = Schedule::cron("nightly", "30 2 * * *").time_zone("Europe/Berlin");
        client.schedules().put::<order>(nightly, "stock".into()).await.unwrap();
        client.schedules().pause("nightly").await.unwrap();
        client.shutdown(Duration::from_secs(10)).await;
        Self { dir, shipped, failed, refunds, later }
    }

    fn run(&self, arguments: &str) -> String {
        run_in(self.dir.path(), arguments)
    }
}

fn program(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command
        .current_dir(dir)
        .env("USER", "grace")
        .env("COLUMNS", "100")
        .env_remove("DURABLE_DATABASE_URL");
    // `'` keeps what it encloses together.
    for (n, part) in arguments.split('\'').enumerate() {
        if n % 2 == 1 {
            command.arg(part);
        } else {
            command.args(part.split_whitespace());
        }
    }
    command
}

/// What the program prints, and how it exits.
fn run_in(dir: &Path, arguments: &str) -> String {
    let output = program(dir, arguments).stdin(Stdio::null()).output().unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let err = if err.is_empty() { err } else { format!("[stderr]\n{err}") };
    let code = output.status.code().unwrap();
    let code = if code == 0 { String::new() } else { format!("[exit status {code}]\n") };
    format!("$ stepwell {arguments}\n{out}{err}{code}").replace(&dir.display().to_string(), "[dir]")
}

macro_rules! snapshot {
    ($name:literal, $outputs:expr) => {
        insta::with_settings!({
            omit_expression => true,
            prepend_module_to_snapshot => false,
            filters => [
                (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
                (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z", "[time]"),
                (r"manager/\d+", "manager/[asked]"),
                (r" *[+-]\d+\.\d+ s [·●]+", "[when]"),
                (r"column \d+", "column [n]"),
                (r#""checksum":"[^"]+""#, r#""checksum":"[hash]""#),
            ],
        }, {
            insta::assert_snapshot!($name, $outputs.join("\n"));
        });
    };
}

#[test]
fn helps() {
    let dir = tempfile::tempdir().unwrap();
    let commands = [
        "",
        "tasks",
        "tasks list",
        "tasks spawn",
        "queues set",
        "approvals approve",
        "purge",
        "serve",
        "demo",
    ];
    snapshot!("helps", commands.map(|command| run_in(dir.path(), &format!("{command} --help"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists() {
    let world = World::new().await;
    let lists = [
        "tasks list",
        "tasks list --state suspended --limit 2",
        "tasks list --type order --label tenant=acme",
        "tasks list --queue none",
        &format!("tasks list --parent {}", world.shipped),
        "approvals list",
        "queues list",
        "schedules list",
        "workers list",
        "top",
    ];
    snapshot!("lists", lists.map(|list| world.run(list)));
    let json = [
        "tasks list --state suspended --limit 1 --json",
        "queues list --json",
        "workers list --json",
    ];
    snapshot!("lists_json", json.map(|list| world.run(list)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_task() {
    let world = World::new().await;
    let World { shipped, failed, refunds, .. } = &world;
    let outputs = [
        world.run(&format!("tasks show {shipped}")),
        world.run(&format!("tasks show {failed}")),
        world.run(&format!("tasks show {}", refunds[0])),
        world.run(&format!("tasks watch {shipped}")),
        world.run(&format!("tasks watch {failed}")),
    ];
    snapshot!("one_task", outputs);
    let child = world.run(&format!("tasks list --parent {shipped} --json"));
    let child = child.split('"').find(|text| text.len() == 36 && text.contains('-')).unwrap();
    snapshot!("one_task_odd", [world.run(&format!("tasks show {child}"))]);
    snapshot!("one_task_json", [world.run(&format!("tasks show {} --json", refunds[0]))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions() {
    let world = World::new().await;
    let World { shipped, failed, refunds, later, dir } = &world;
    std::fs::write(dir.path().join("amount.json"), "12").unwrap();
    let actions = [
        "tasks spawn order '\"lamp\"' --priority -3 --delay 1h --label tenant=x --idempotency-key \
         k --queue q"
            .into(),
        "tasks spawn order '\"lamp\"' --idempotency-key k".into(),
        "tasks spawn refund @amount.json --json".into(),
        format!("tasks pause {later} {}", refunds[2]),
        "tasks list --queue slow".into(),
        format!("tasks resume {later}"),
        format!("tasks pause {shipped}"),
        format!("tasks cancel {later} {}", refunds[2]),
        format!("tasks retry {failed}"),
        format!("tasks retrigger {shipped}"),
        format!("tasks delete {shipped}"),
        "events emit shipped '{\"parcel\": 7}'".into(),
        "events emit shipped true --queue slow".into(),
        "events emit shipped".into(),
        format!("send {} note '\"soon\"'", refunds[0]),
        format!("approvals approve {} manager 5 --by ada --reason 'it is little'", refunds[0]),
        format!("approvals reject {} manager --json", refunds[1]),
        "approvals list".into(),
        "queues pause slow".into(),
        "queues set fast --max-running 9 --max-running-per-worker 3 --rate 100/1m".into(),
        "queues list".into(),
        "queues resume slow".into(),
        "schedules resume nightly".into(),
        "schedules pause nightly".into(),
        "schedules trigger nightly".into(),
        "schedules delete nightly".into(),
        "schedules list".into(),
        "purge --older-than 0s --state cancelled".into(),
        "purge --older-than 1day".into(),
        "migrate".into(),
    ];
    snapshot!("actions", actions.map(|action: String| world.run(&action)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_moves_to_another_database() {
    let world = World::new().await;
    let task = world.refunds[0];
    let other = "--database-url sqlite://other.db";
    let outputs = [
        world.run(&format!("tasks export {task} --output task.json")),
        world.run(&format!("{other} migrate")),
        world.run(&format!("{other} tasks import task.json")),
        world.run(&format!("{other} tasks list")),
        world.run(&format!("{other} tasks import task.json")),
    ];
    snapshot!("moves", outputs);
    let document = std::fs::read_to_string(world.dir.path().join("task.json")).unwrap();
    let printed = world.run(&format!("tasks export {task}"));
    assert!(printed.contains("\"format\":") && printed.len() >= document.len(), "{printed}");
    // In the middle of a name: times are not always of one length.
    let half = document.find("\"body\"").unwrap() + 4;
    std::fs::write(world.dir.path().join("task.json"), &document[..half]).unwrap();
    snapshot!("moves_damaged", [world.run(&format!("{other} tasks import task.json"))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors() {
    let empty = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let World { shipped, refunds, .. } = &world;
    let gone = "01900000-0000-7000-8000-000000000000";
    let mut outputs = vec![
        run_in(empty.path(), "tasks list"),
        run_in(empty.path(), "tasks list --json"),
        run_in(empty.path(), "--database-url mysql://host tasks list"),
        run_in(empty.path(), "serve"),
        run_in(empty.path(), "--database-url postgres://nobody@127.0.0.1:1/none tasks list"),
    ];
    assert_eq!(
        std::fs::read_dir(empty.path()).unwrap().count(),
        0,
        "a database was made by looking for it"
    );
    let commands = [
        "serve --listen 0.0.0.0:0".into(),
        "serve --token short".into(),
        "serve --listen 192.0.2.1:80 --token 0123456789abcdef".into(),
        format!("tasks show {gone}"),
        format!("tasks watch {gone}"),
        format!("tasks cancel {gone}"),
        format!("tasks cancel {shipped}"),
        format!("tasks delete {}", refunds[0]),
        format!("send {shipped} note"),
        format!("approvals approve {} boss", refunds[0]),
        format!("workers drain {gone}"),
        "schedules pause hourly".into(),
        "tasks spawn order {".into(),
        "tasks spawn order @none.json".into(),
        "tasks spawn '' 1".into(),
        "tasks import none.json".into(),
        "tasks show 7".into(),
        "tasks list --state done".into(),
        "tasks list --label tenant".into(),
        "queues set q --rate 7".into(),
        "queues set q --rate 7/moon".into(),
        "purge --older-than 1h --state running".into(),
        "tasks cancel".into(),
        "tusks".into(),
    ];
    outputs.extend(commands.map(|command| world.run(&command)));
    snapshot!("errors", outputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_version_is_left_as_it_is() {
    let world = World::new().await;
    let conn = Connection::open(world.dir.path().join("stepwell.db")).unwrap();
    let mut outputs = Vec::new();
    for version in [0, 99] {
        conn.execute("UPDATE stepwell_schema SET version = ?1", [version]).unwrap();
        outputs.push(world.run("tasks list"));
    }
    drop(
        Connection::open(world.dir.path().join("mine.db"))
            .unwrap()
            .execute_batch("CREATE TABLE mine (a)"),
    );
    outputs.push(world.run("--database-url sqlite://mine.db tasks list"));
    snapshot!("other_versions", outputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_and_a_closed_pipe_is_no_error() {
    let world = World::new().await;
    let show = format!("tasks show {}", world.failed);
    assert!(!world.run(&show).contains('\u{1b}'));
    let forced = program(world.dir.path(), &show).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(String::from_utf8(forced.stdout).unwrap().contains("\u{1b}[31m"));

    let mut child = program(world.dir.path(), &show)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn completions_name_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run_in(dir.path(), &format!("completions {shell}"));
        assert!(script.contains("retrigger") && script.contains("approvals"), "{shell}: {script}");
    }
}

/// The tour ends as it promises: with the death of a worker, and every order as it should be.
#[test]
fn the_tour() {
    let dir = tempfile::tempdir().unwrap();
    let output = run_in(dir.path(), "demo --exit --folder . --listen 127.0.0.1:0");
    for line in ["kill -9 process", "another one has started", "steps ran"] {
        assert!(output.contains(line), "{output}");
    }
    for (customer, end) in [("ada", "completed"), ("wile", "failed"), ("barbara", "suspended")] {
        let ended =
            output.lines().any(|line| line.trim().starts_with(customer) && line.contains(end));
        assert!(ended, "{customer}:\n{output}");
    }
    assert!(!output.contains("exit status"), "{output}");
    let list = run_in(dir.path(), "tasks list");
    assert_eq!(list.matches("order").count(), 5, "{list}");
}
