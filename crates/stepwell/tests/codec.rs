//! Payloads that are compressed and encrypted, through the public face: they come back as they
//! were, nobody reads them who has not the key, and what cannot be read fails nothing but the task
//! that reads it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::codec::{Compression, Encryption, Key};
use stepwell::store::Batch;
use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;

fn key(id: &str) -> Key {
    let mut bytes = [0; 32];
    bytes[..id.len()].copy_from_slice(id.as_bytes());
    Key::new(id, bytes).unwrap()
}

/// How often the steps of `keeper` ran.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicU32>);

/// Would go on with words of its own, were it told of what cannot be read.
#[stepwell::task]
async fn keeper(secret: String, ctx: TaskContext) -> TaskResult<String> {
    let runs = ctx.state::<Runs>()?;
    let step = ctx.step("keep", || async {
        runs.0.fetch_add(1, Ordering::SeqCst);
        Ok(format!("{secret} is kept"))
    });
    let kept = step.await.unwrap_or_else(|_| "nothing".into());
    let fails = ctx.step("fails", || async {
        runs.0.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(anyhow::anyhow!("as it always does"))
    });
    fails.await.unwrap_err();
    let event = ctx.await_event("opened", None).await.unwrap_or_else(|_| "unseen".to_owned());
    let message = ctx.recv("told", None).await.unwrap_or_else(|_| "unheard".to_owned());
    Ok(format!("{kept}, {event}, {message}"))
}

#[stepwell::task]
async fn echo(value: Value, ctx: TaskContext) -> TaskResult<Value> {
    ctx.step("echo", || async { Ok(value) }).await
}

async fn process(
    harness: &Harness,
    build: impl FnOnce(DurableBuilder) -> DurableBuilder,
) -> (Process, Runs) {
    process_on(harness, Arc::new(harness.store()), build).await
}

async fn process_on(
    harness: &Harness,
    store: Arc<dyn Store>,
    build: impl FnOnce(DurableBuilder) -> DurableBuilder,
) -> (Process, Runs) {
    let runs = Runs::default();
    let process =
        harness.start_on(store, |builder| build(builder.state(runs.clone()).max_attempts(1))).await;
    let process = process.unwrap();
    process.register::<keeper>().await.unwrap();
    process.register::<echo>().await.unwrap();
    (process, runs)
}

async fn in_state(process: &Process, task_id: TaskId, state: TaskState) {
    loop {
        let task = process.task(task_id).await.unwrap().unwrap();
        if task.state == state {
            return;
        }
        assert!(!task.state.is_finished(), "{:?}", task.failure);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The worker takes other tasks, and they can be listed.
async fn goes_on(process: &Process) {
    let task = process.spawn::<echo>(json!("fine")).await.unwrap();
    assert_eq!(process.wait::<Value>(task.task_id).await.unwrap(), "fine");
    let tasks = process.tasks(TaskFilter::default()).await.unwrap().items;
    let listed = serde_json::to_value(&tasks).unwrap();
    let listed: Vec<_> =
        listed.as_array().unwrap().iter().map(|task| task["params"].clone()).collect();
    assert!(listed.contains(&json!("fine")), "{listed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_taken_for_what_is_written_and_the_old_one_still_read() {
    let harness = Harness::new();
    let (old, runs) = process(&harness, |builder| builder.codec(Encryption::new(key("old")))).await;
    old.start_worker(worker_options()).await;
    let task = old.spawn::<keeper>("the recipe".into()).await.unwrap().task_id;
    in_state(&old, task, TaskState::Suspended).await;
    old.kill().await;

    let rotated = || Encryption::new(key("new")).also_reads(key("older")).also_reads(key("old"));
    let (new, runs_again) = process(&harness, |builder| builder.codec(rotated())).await;
    new.start_worker(worker_options()).await;
    new.emit_event("opened", "the safe").await.unwrap();
    new.send(task, "told", "everybody").await.unwrap();
    let output: String = new.wait(task).await.unwrap();
    assert_eq!(output, "the recipe is kept, the safe, everybody");
    assert_eq!((runs.0.load(Ordering::SeqCst), runs_again.0.load(Ordering::SeqCst)), (2, 0));

    let kept = harness.store().task(task).await.unwrap().unwrap();
    assert!(
        kept.params.as_str().starts_with(r#"{"$stepwell":["aes256gcm:old"],"data":""#),
        "{}",
        kept.params
    );
    let output = kept.output.unwrap();
    assert!(output.as_str().starts_with(r#"{"$stepwell":["aes256gcm:new"],"data":""#), "{output}");

    let (without_old, _) =
        process(&harness, |builder| builder.codec(Encryption::new(key("new")))).await;
    let seen = without_old.task(task).await.unwrap().unwrap();
    assert_eq!(seen.output.unwrap().as_str(), r#""the recipe is kept, the safe, everybody""#);
    let error = seen.params.decode::<String>().unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "the parameters of task {task} cannot be read: it was encrypted with the key `old`, \
             and this client has `new`: add that key with `Encryption::also_reads`"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_payload_has_another_key_fails_alone_and_goes_on_when_the_key_is_there() {
    let another_of_that_id = Key::new("mine", [9; 32]).unwrap();
    for (wrong, says) in [
        (key("yours"), "it was encrypted with the key `mine`, and this client has `yours`"),
        (
            another_of_that_id,
            "the key `mine` does not open it: either this client has another key by that id",
        ),
    ] {
        let harness = Harness::new();
        let (first, _) =
            process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
        first.start_worker(worker_options()).await;
        let begun = first.spawn::<keeper>("the recipe".into()).await.unwrap().task_id;
        in_state(&first, begun, TaskState::Suspended).await;
        first.kill().await;
        let (spawner, _) =
            process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
        let fresh = spawner.spawn::<echo>(json!("new")).await.unwrap().task_id;

        let (blind, _) = process(&harness, |builder| builder.codec(Encryption::new(wrong))).await;
        blind.start_worker(worker_options()).await;
        blind.emit_event("opened", "the safe").await.unwrap();
        let error = blind.wait::<Value>(fresh).await.unwrap_err().to_string();
        let what = format!("the parameters of task {fresh} cannot be read: {says}");
        assert!(error.contains(&what), "{error}");
        let error = blind.wait::<Value>(begun).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("the parameters of task {begun} cannot be read: {says}")),
            "{error}"
        );
        goes_on(&blind).await;
        blind.kill().await;

        // What the blind one said of it was written with its own key.
        let (seeing, _) =
            process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
        let failure = seeing.task(fresh).await.unwrap().unwrap().failure.unwrap();
        assert_eq!(failure.kind, FailureKind::Payload);
        assert!(
            failure.message.starts_with(&format!("the failure of task {fresh} cannot be read")),
            "{failure}"
        );
        seeing.start_worker(worker_options()).await;
        seeing.retry(fresh).await.unwrap();
        assert_eq!(seeing.wait::<Value>(fresh).await.unwrap(), "new");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_and_a_message_that_cannot_be_read_stay_where_they_are_until_they_can_be() {
    for (unreadable, says) in
        [("event", "the event \"opened\" cannot be read"), ("message", "a message \"told\" to")]
    {
        let harness = Harness::new();
        let (blind, _) =
            process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
        let both = Encryption::new(key("yours")).also_reads(key("mine"));
        let (seeing, runs) = process(&harness, |builder| builder.codec(both)).await;
        blind.start_worker(worker_options()).await;
        let hourly = SpawnOptions::new()
            .max_attempts(2)
            .retry(RetryStrategy::fixed(Duration::from_secs(3600)));
        let task =
            blind.spawn::<keeper>("the recipe".into()).options(hourly).await.unwrap().task_id;
        in_state(&blind, task, TaskState::Suspended).await;

        let sender = |what| if what == unreadable { &seeing } else { &blind };
        sender("message").send(task, "told", "everybody").await.unwrap();
        sender("event").emit_event("opened", "the safe").await.unwrap();
        in_state(&blind, task, TaskState::Pending).await;
        let failure = blind.task(task).await.unwrap().unwrap().failure.unwrap().message;
        assert!(
            failure.contains(says) && failure.contains("encrypted with the key `yours`"),
            "{failure}"
        );
        goes_on(&blind).await;
        let journal = seeing.journal(task).await.unwrap();
        assert!(journal.iter().all(|entry| entry.key.kind.as_str() != unreadable), "{journal:?}");
        blind.kill().await;

        seeing.start_worker(worker_options()).await;
        let output: String = seeing.wait(task).await.unwrap();
        assert_eq!(output, "the recipe is kept, the safe, everybody");
        assert_eq!(runs.0.load(Ordering::SeqCst), 0, "it went on from where it was");
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_read_is_replayed_once_it_can_be() {
    let harness = Harness::new();
    let (blind, _) = process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
    let task = blind.spawn::<keeper>("the recipe".into()).await.unwrap().task_id;
    let both = || Encryption::new(key("yours")).also_reads(key("mine"));
    let (first, _) = process(&harness, |builder| builder.codec(both())).await;
    first.start_worker(worker_options()).await;
    in_state(&first, task, TaskState::Suspended).await;
    first.kill().await;

    blind.start_worker(worker_options()).await;
    blind.emit_event("opened", "the safe").await.unwrap();
    let error = blind.wait::<String>(task).await.unwrap_err().to_string();
    let says =
        format!("\"keep\": entry 1 (step \"keep\") in the journal of task {task} cannot be read");
    assert!(error.contains(&says), "{error}");
    blind.kill().await;

    let (seeing, runs) = process(&harness, |builder| builder.codec(both())).await;
    seeing.start_worker(worker_options()).await;
    seeing.retry(task).await.unwrap();
    seeing.send(task, "told", "everybody").await.unwrap();
    let output: String = seeing.wait(task).await.unwrap();
    assert_eq!(output, "the recipe is kept, the safe, everybody");
    assert_eq!(runs.0.load(Ordering::SeqCst), 0);
}

/// What a worker without the key cannot undo is left to one that has it.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_undone_and_cannot_be_read_is_undone_once_it_can_be() {
    async fn booked(process: &Process, undone: &Runs) {
        let undone = undone.clone();
        let book = move |guest: String, ctx: TaskContext| {
            let undone = undone.clone();
            async move {
                let undo = move |room: String| {
                    assert_eq!(room, "the room of ada");
                    undone.0.fetch_add(1, Ordering::SeqCst);
                    async { Ok(()) }
                };
                ctx.step("book", || async { Ok(format!("the room of {guest}")) })
                    .compensate(undo)
                    .await?;
                ctx.await_event::<()>("never", None).await
            }
        };
        process.register_fn("booked", book).await.unwrap();
    }
    let (harness, undone) = (Harness::new(), Runs::default());
    let (first, _) = process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
    booked(&first, &undone).await;
    first.start_worker(worker_options()).await;
    let task = first.spawn_named("booked", "ada").await.unwrap().task_id;
    in_state(&first, task, TaskState::Suspended).await;
    first.kill().await;

    let (blind, _) =
        process(&harness, |builder| builder.codec(Encryption::new(key("yours")))).await;
    booked(&blind, &undone).await;
    blind.cancel(task).await.unwrap();
    blind.start_worker(worker_options()).await;
    while blind.task(task).await.unwrap().unwrap().due_at.is_none() {
        in_state(&blind, task, TaskState::Compensating).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    blind.kill().await;

    let (seeing, _) =
        process(&harness, |builder| builder.codec(Encryption::new(key("mine")))).await;
    booked(&seeing, &undone).await;
    seeing.start_worker(worker_options()).await;
    let error = seeing.wait::<()>(task).await.unwrap_err();
    assert!(matches!(error, Error::TaskCancelled(_)), "{error}");
    assert_eq!(undone.0.load(Ordering::SeqCst), 1);
}

/// A store that does something to what is to be written, behind the codecs' back.
fn meddled(harness: &Harness, meddle: fn(&mut Batch)) -> Arc<dyn Store> {
    Arc::new(Intercepted::new(Arc::new(harness.store()), move |store, mut batch| {
        meddle(&mut batch);
        store.commit(batch.into())
    }))
}

#[tokio::test(start_paused = true)]
async fn damaged_payloads_fail_their_tasks_alone() {
    fn changed(params: &Payload, change: impl FnOnce(&str) -> String) -> Payload {
        Payload::from_json(change(params.as_str()))
    }
    let harness = Harness::new();
    // By the priority of a spawn: what is done to its parameters.
    let store = meddled(&harness, |batch| {
        for task in &mut batch.spawns {
            task.params = match task.priority {
                1 => changed(&task.params, |text| text.replace("\"data\":\"", "\"data\":\"AAAA")),
                2 => changed(&task.params, |text| text[..text.len() - 9].to_owned()),
                3 => changed(&task.params, |text| text.replace("zstd", "zst0")),
                4 => changed(&task.params, |text| text.replace("[\"zstd\"", "[\"zstd\",\"zstd\"")),
                5 => changed(&task.params, |text| text.replace("\"data\":\"", "\"data\":\"?")),
                6 => changed(&task.params, |_| {
                    r#"{"$stepwell":["aes256gcm:mine"],"data":"AAAA"}"#.into()
                }),
                _ => continue,
            };
        }
    });
    let codecs = |builder: DurableBuilder| {
        builder.codec(Compression::new()).codec(Encryption::new(key("mine")))
    };
    let (process, _) = process_on(&harness, store, codecs).await;
    let long = json!("tell nobody ".repeat(100));
    let mut tasks = Vec::new();
    for priority in 0..=6 {
        let options = SpawnOptions::new().priority(priority);
        tasks.push(process.spawn::<echo>(long.clone()).options(options).await.unwrap().task_id);
    }
    process.start_worker(worker_options()).await;
    assert_eq!(process.wait::<Value>(tasks[0]).await.unwrap(), long);
    for (task, says) in tasks.iter().skip(1).zip([
        "the key `mine` does not open it",
        "what the database holds of it is damaged (EOF while parsing",
        "it was written with the codec `zst0`, which this client does not have",
        "what the database holds of it is damaged (zstd: ",
        "what the database holds of it is damaged (Invalid symbol",
        "what the database holds of it is damaged (it is too short)",
    ]) {
        let error = process.wait::<Value>(*task).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    goes_on(&process).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_written_without_a_codec_or_with_one_that_is_no_longer_used_stays_readable() {
    let harness = Harness::new();
    let long = "the recipe ".repeat(50);
    let kept = |task: TaskId| {
        let store = harness.store();
        async move {
            store
                .task(task)
                .await
                .unwrap()
                .unwrap()
                .params
                .as_str()
                .chars()
                .take(25)
                .collect::<String>()
        }
    };
    let (plain, _) = process(&harness, |builder| builder).await;
    let first = plain.spawn::<keeper>(long.clone()).await.unwrap().task_id;
    let (compressing, _) = process(&harness, |builder| builder.codec(Compression::new())).await;
    let second = compressing.spawn::<keeper>(long.clone()).await.unwrap().task_id;
    let short = compressing.spawn::<keeper>("short".into()).await.unwrap().task_id;
    let (both, _) = process(&harness, |builder| {
        builder
            .codec(ReadOnly(Compression::new()))
            .codec(Encryption::new(key("mine")).accept_plain())
    })
    .await;
    let third = both.spawn::<keeper>(long.clone()).await.unwrap().task_id;
    assert!(kept(first).await.starts_with("\"the recipe"));
    assert!(kept(second).await.starts_with(r#"{"$stepwell":["zstd"],"#));
    assert_eq!(kept(short).await, "\"short\"");
    assert!(kept(third).await.starts_with(r#"{"$stepwell":["aes256gcm:"#));

    both.start_worker(worker_options()).await;
    both.emit_event("opened", "the safe").await.unwrap();
    for (task, secret) in [(first, &*long), (second, &*long), (short, "short"), (third, &*long)] {
        both.send(task, "told", "everybody").await.unwrap();
        let output: String = both.wait(task).await.unwrap();
        assert_eq!(output, format!("{secret} is kept, the safe, everybody"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_encrypted_is_refused_and_read_once_that_is_allowed() {
    let encrypted = |builder: DurableBuilder| builder.codec(Encryption::new(key("mine")));
    for plain in ["params", "event", "message"] {
        let harness = Harness::new();
        let (knows, _) = process(&harness, encrypted).await;
        // This client can write to the database, and has no key.
        let (intruder, _) = process(&harness, |builder| builder).await;
        let by = |what| if plain == what { &intruder } else { &knows };
        let task = by("params").spawn::<keeper>("the recipe".into()).await.unwrap().task_id;
        by("event").emit_event("opened", "the safe").await.unwrap();
        by("message").send(task, "told", "everybody").await.unwrap();
        knows.start_worker(worker_options()).await;
        let error = knows.wait::<String>(task).await.unwrap_err().to_string();
        assert!(
            error.contains("it is not encoded with `aes256gcm`, which this client requires"),
            "{error}"
        );
        let listed = knows.tasks(TaskFilter::default()).await.unwrap();
        assert_eq!(listed.items[0].params.unreadable().is_some(), plain == "params");
        goes_on(&knows).await;
        knows.kill().await;

        let (migrates, _) =
            process(&harness, |builder| builder.codec(Encryption::new(key("mine")).accept_plain()))
                .await;
        migrates.start_worker(worker_options()).await;
        migrates.retry(task).await.unwrap();
        let output: String = migrates.wait(task).await.unwrap();
        assert_eq!(output, "the recipe is kept, the safe, everybody");
    }
}

#[tokio::test(start_paused = true)]
async fn an_envelope_without_its_encryption_is_refused() {
    let harness = Harness::new();
    let store = meddled(&harness, |batch| {
        for task in &mut batch.spawns {
            let layers = match task.priority {
                1 => "[]",
                2 => r#"["zstd"]"#,
                3 => r#"["aes256gcmx:mine"]"#,
                _ => continue,
            };
            task.params =
                Payload::from_json(format!(r#"{{"$stepwell":{layers},"data":"InN0b2xlbiI="}}"#));
        }
    });
    let codecs = |builder: DurableBuilder| {
        builder.codec(Compression::new()).codec(Encryption::new(key("mine")))
    };
    let (process, _) = process_on(&harness, store, codecs).await;
    let mut tasks = Vec::new();
    for priority in 1..=3 {
        let options = SpawnOptions::new().priority(priority);
        tasks.push(process.spawn::<echo>(json!("mine")).options(options).await.unwrap().task_id);
    }
    process.start_worker(worker_options()).await;
    for task in tasks {
        let error = process.wait::<Value>(task).await.unwrap_err().to_string();
        assert!(error.contains("it is not encoded with `aes256gcm`"), "{error}");
    }
    // What the store says by itself, that a task was cancelled or is tried again, needs no key.
    let late = SpawnOptions::new().delay(Duration::from_secs(3600));
    let cancelled = process.spawn::<echo>(json!("late")).options(late).await.unwrap().task_id;
    process.cancel(cancelled).await.unwrap();
    process.retry(cancelled).await.unwrap();
    assert_eq!(process.wait::<Value>(cancelled).await.unwrap(), "late");
    goes_on(&process).await;
}

#[tokio::test(start_paused = true)]
async fn values_that_look_like_what_codecs_make_come_back_as_they_were() {
    let likes = [
        json!({ "$stepwell": ["zstd"], "data": "KLUv/SQA" }),
        json!({ "$stepwell": ["aes256gcm:mine"], "data": "AAAA" }),
        json!({ "$stepwell": [], "data": "e30=" }),
        json!({ "$stepwell": [] }),
        json!({ "$stepwell": "zstd" }),
        json!({ "$unreadable": "or is it?" }),
    ];
    let builders: [fn(DurableBuilder) -> DurableBuilder; 3] = [
        |builder| builder.codec(Compression::new()),
        |builder| builder.codec(Encryption::new(key("mine"))),
        |builder| builder.codec(Compression::new()).codec(Encryption::new(key("mine"))),
    ];
    for build in builders {
        let harness = Harness::new();
        let (process, _) = process(&harness, build).await;
        process.start_worker(worker_options()).await;
        for like in &likes {
            let task = process.spawn::<echo>(like.clone()).await.unwrap();
            assert_eq!(process.wait::<Value>(task.task_id).await.unwrap(), *like);
        }
        let told = r#"{"$stepwell":["zstd"],"data":"#;
        process
            .register_fn("fails", move |(): (), _ctx: TaskContext| async move {
                Err::<(), _>(anyhow::anyhow!(told).into())
            })
            .await
            .unwrap();
        let task = process.spawn_named("fails", &()).await.unwrap();
        let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task.task_id).await else {
            panic!()
        };
        assert_eq!(failure.message, told);
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_that_of_the_value_and_not_of_what_is_kept() {
    let harness = Harness::new();
    let (process, _) = process(&harness, |builder| {
        builder
            .max_payload_bytes(1000)
            .codec(Compression::new())
            .codec(Encryption::new(key("mine")))
    })
    .await;
    process.start_worker(worker_options()).await;
    // What is random gets longer by encryption, and what repeats itself gets shorter by
    // compression.
    let random: String = (0..499).map(|_| format!("{:02x}", rand_byte())).collect();
    let task = process.spawn::<echo>(json!(random)).await.unwrap();
    assert_eq!(process.wait::<Value>(task.task_id).await.unwrap(), random);
    let error = process.spawn::<echo>(json!("x".repeat(999))).await.unwrap_err().to_string();
    assert!(error.contains("has 1001 bytes, the limit is 1000"), "{error}");
}

fn rand_byte() -> u8 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u8
}

/// Cannot encode now and then.
#[derive(Debug, Default)]
struct Moody(AtomicU32);

impl Codec for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn encode(&self, bytes: &[u8], _place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        match self.0.fetch_add(1, Ordering::SeqCst) % 4 {
            1 | 2 => Err(CodecError::Other("not now".into())),
            _ => Ok(Some(bytes.to_vec())),
        }
    }

    fn decode(
        &self,
        bytes: &[u8],
        _key: Option<&str>,
        _place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_encoded_is_tried_again_and_nothing_is_lost() {
    let harness = Harness::new();
    let (process, runs) = process(&harness, |builder| builder.codec(Moody::default())).await;
    let task = process.spawn::<keeper>("the recipe".into()).await.unwrap().task_id;
    let error = process.emit_event("opened", "the safe").await.unwrap_err().to_string();
    assert_eq!(error, "the event \"opened\" cannot be encoded: not now");
    process.emit_event("opened", "the safe").await.unwrap();
    process.send(task, "told", "everybody").await.unwrap();
    process.start_worker(worker_options()).await;
    let output: String = process.wait(task).await.unwrap();
    assert_eq!(output, "the recipe is kept, the safe, everybody");
    assert_eq!(runs.0.load(Ordering::SeqCst), 2);
}

/// What cannot be read is neither exported nor spawned again in the place of what it was.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_goes_nowhere() {
    let harness = Harness::new();
    let encrypted = |id| move |builder: DurableBuilder| builder.codec(Encryption::new(key(id)));
    let (owner, _) = process(&harness, encrypted("a")).await;
    let (other, _) = process(&harness, encrypted("b")).await;
    let (blind, _) = process(&harness, |builder| builder).await;
    let failed = |(): (), ctx: TaskContext| async move {
        let _ = ctx
            .step("fails", || async { Err::<(), _>(anyhow::anyhow!("as it always does")) })
            .await;
        ctx.sleep_for("nap", Duration::from_secs(3600)).await
    };
    owner.register_fn("failed", failed).await.unwrap();
    owner.start_worker(worker_options()).await;
    let done = owner.spawn::<echo>(json!("secret")).await.unwrap().task_id;
    owner.wait::<Value>(done).await.unwrap();
    let failed = owner.spawn_named("failed", &()).await.unwrap().task_id;
    in_state(&owner, failed, TaskState::Suspended).await;
    for task in [done, failed] {
        owner.export(task).await.unwrap().to_json().unwrap();
        let export = other.export(task).await.unwrap();
        assert!(matches!(export.to_json(), Err(PayloadError::Unreadable { .. })));
        // With the codecs' text as it is, for a client that has them.
        blind.export(task).await.unwrap().to_json().unwrap();
    }
    for process in [&other, &blind] {
        let error = process.retrigger(done).await.unwrap_err();
        let Error::Payload { source: PayloadError::Unreadable { .. }, .. } = error else {
            panic!("{error}")
        };
    }
    assert_eq!(owner.tasks(TaskFilter::default()).await.unwrap().items.len(), 2);
    owner.retrigger(done).await.unwrap();
}
