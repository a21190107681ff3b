//! The points of fidelity: everything comes back as it was stored.

use std::time::Duration;

use stepwell_core::store::{
    CancellationPolicy, Command, Finish, NewTask, Next, Spawned, Transition, Wait,
};
use stepwell_core::{
    Entry, Failure, FailureKind, Key, Kind, MAX_NAME_BYTES, Outcome, Payload, Retry, RunId, TaskId,
    Timestamp, after, from_micros,
};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::Setup;

/// Sends a payload through every place that stores one.
async fn comes_back(store: &Handle, n: u128, what: &str, payload: &Payload) {
    let text = format!("event {n}");
    store.spawn([NewTask { params: payload.clone(), ..new_task(n) }]).await;
    let task = store.claim_one(1).await;
    assert!(task.params == *payload, "the parameters of a claim: {what}");
    let run = of(&task);
    let mut transition =
        awaiting(run, [for_event(&text), for_message("topic", 1), for_message("topic", 2)], LOOK);
    transition.entries = vec![step(1, payload.clone())];
    transition.events = vec![event(&text, payload.clone())];
    transition.messages = vec![message(n, "topic", payload.clone())];
    store.send(message(n, "topic", payload.clone())).await;
    let facts = store.apply(transition).await.unwrap().facts;
    assert!(facts.events.iter().map(|(_, payload)| payload).eq([payload]), "an event: {what}");
    assert!(payloads(&facts).iter().eq([payload; 2]), "messages: {what}");
    let ends = Transition::new(run.0, run.1, Next::Complete(payload.clone()));
    let news = store.commit(transitions([ends])).await.news;
    let finish = Finish::Completed(payload.clone());
    assert!(news.finished == [(run.0, finish)], "the output as news: {what}");
    let info = store.info(n).await;
    assert!(info.params == *payload, "the parameters: {what}");
    assert!(info.output.as_ref() == Some(payload), "the output: {what}");
    assert!(store.journal(n).await == [step(1, payload.clone())], "an entry: {what}");
    store.command(Command::Delete(run.0)).await;
}

/// Checks that payloads come back byte for byte: in the size of the default limit, with any text
/// that JSON allows, in any notation.
pub async fn payloads_come_back(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let large = |text: &str| {
        let count = (Payload::DEFAULT_LIMIT - 2) / text.len();
        let padding = "x".repeat(Payload::DEFAULT_LIMIT - 2 - count * text.len());
        json(&format!("\"{}{padding}\"", text.repeat(count)))
    };
    let all = [
        ("4 MiB", large("x")),
        ("4 MiB of escapes", large("\\\"\\\\\\u0000")),
        ("4 MiB of emoji", large("📦")),
        ("NUL escapes", json(r#"{"\u0000":"a\u0000b","c":["\u0000"]}"#)),
        ("the order of keys, and keys that come twice", json(r#"{"b":1,"a":2,"b":3,"":4}"#)),
        ("white space", json(" {\n\t\"a\" : [ 1 ,\r\n 2 ]\n} ")),
        (
            "numbers",
            json(
                "[1.0,1e3,-0,-0.0,1E400,123456789012345678901234567890,\
                0.1000000000000000055511151231257827]",
            ),
        ),
        (
            "text as it is",
            json("\"päckchen 📦 \u{202e}rtl \u{7f} \u{2028} \u{feff} 'quoted' $1 ? :a @b {} %s\""),
        ),
        ("text as escapes", json(r#""\u00e4 \ud83d\udce6 \/ \b\f\n\r\t \u001f""#)),
        ("half a pair", json(r#""\ud83d""#)),
        ("single values", json("true")),
        ("null", Payload::null()),
        ("empty text", json("\"\"")),
        ("depth", json(&format!("{}{}", "[".repeat(100), "]".repeat(100)))),
    ];
    for (n, (what, payload)) in (1..).zip(&all) {
        comes_back(&store, n, what, payload).await;
    }
}

/// Checks that failures come back with all their parts.
pub async fn failures_come_back(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let odd = "päckchen 📦\0 'quoted' \"name\" \\ \n\t\u{1}";
    let all = [
        Failure::new(FailureKind::Error, odd),
        Failure { causes: vec![odd.into(), String::new(), "\0".into()], ..failure("") },
        Failure { retry: Retry::After(Duration::new(7, 123_456_789)), ..failure("later") },
        Failure::new(FailureKind::Diverged, "x".repeat(1 << 20)).permanent(),
    ];
    for (n, failed) in (1..).zip(all) {
        let run = store.run_one(n).await;
        let at = setup.at(SECOND);
        let entry = |seq, outcome| Entry { outcome, ..step(seq, json("0")) };
        let entries = vec![
            entry(1, Outcome::failed(failed.clone())),
            entry(2, Outcome::Retrying { failure: failed.clone().into(), at }),
        ];
        store.journals(run, entries.clone()).await;
        assert_eq!(store.journal(n).await, entries);
        store.next(run, Next::Retry { failure: failed.clone(), at: Timestamp::UNIX_EPOCH }).await;
        assert_eq!(store.info(n).await.failure.as_ref(), Some(&failed));
        let run = of(&store.claim_one(1).await);
        store.next(run, Next::Fail(failed.clone())).await;
        assert_eq!(store.info(n).await.failure, Some(failed));
    }
}

/// Checks that names, headers and keys come back unchanged in each place, and that no name is
/// mistaken for another one.
pub async fn odd_names(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let long = "ä".repeat(MAX_NAME_BYTES / 2);
    let names = [
        "'; DROP TABLE stepwell_tasks; --",
        "\" OR \"\"=\"",
        "päckchen 📦",
        "PÄCKCHEN 📦",
        "\"quoted\" \\ % _ * ? \n\t\r",
        "\u{202e}rtl",
        "e\u{301}",
        "é",
        " ",
        "  ",
        "a ",
        "a",
        "A",
        "null",
        "NULL",
        "{a,\"b\"}",
        "$1",
        "\u{1}\u{7f}\u{feff}",
        "0",
        &long,
    ];
    for (n, text) in (1..).zip(names) {
        let mut task = new_task(n);
        (task.task_type, task.queue, task.idempotency_key) =
            (name(text), name(text), Some(name(text)));
        task.headers.insert(text.into(), format!("{text}\0").into());
        task.headers.insert("\0".into(), u64::try_from(n).unwrap().into());
        let headers = task.headers.clone();
        assert!(matches!(store.spawn([task]).await[..], [Spawned::Created { .. }]), "{text:?}");
        let info = store.info(n).await;
        assert_eq!((&info.task_type, &info.queue), (&name(text), &name(text)));
        assert_eq!((info.idempotency_key, info.headers), (Some(name(text)), headers.clone()));
        let claimed =
            store.commit(claims([claim_of(1, &[text], &[text], 5)])).await.claims.remove(0).tasks;
        assert_eq!(claimed.len(), 1, "{text:?}");
        assert_eq!(claimed[0].headers, headers);
        works_under(&store, of(&claimed[0]), n, text).await;
    }
    assert_eq!(store.all().await.len(), names.len());
}

/// Checks an event, a topic and an operation with a name.
async fn works_under(store: &Handle, run: (TaskId, RunId), n: u128, text: &str) {
    let waits = vec![for_event(text), for_message(text, 1)];
    let applied = store.apply(awaiting(run, waits.clone(), SUSPEND)).await.unwrap();
    assert!(applied.suspended, "{text:?} is taken for another name");
    assert!(store.emit(event(text, number(n))).await, "{text:?}");
    assert!(store.send(message(n, text, number(n))).await);
    let claimed =
        store.commit(claims([claim_of(1, &[text], &[text], 5)])).await.claims.remove(0).tasks;
    let [task] = &claimed[..] else { panic!("{text:?} was not woken") };
    assert_eq!(store.waits_of(n).await, waits);
    assert_eq!(task.facts.events, [(name(text), number(n))]);
    assert_eq!(
        (&task.facts.messages[0].topic, &payloads(&task.facts)[..]),
        (&name(text), &[number(n)][..])
    );
    let key = Key { kind: Kind::Step, name: name(text), ordinal: u32::MAX >> 1 };
    let entries = vec![Entry { key, ..step(1, json("1")) }];
    store.journals(run, entries.clone()).await;
    assert_eq!(store.journal(n).await, entries);
    let mut removes = Transition::new(run.0, run.1, LOOK);
    removes.waits_removed = waits.into_iter().map(|wait| wait.key).collect();
    assert!(store.apply(removes).await.unwrap().facts.is_empty(), "{text:?}");
}

/// Checks that every kind of entry and of wait comes back unchanged.
pub async fn entries_come_back(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    let key = |kind| Key { kind, name: name("key"), ordinal: 2 };
    let entries: Vec<_> = (1..)
        .zip(Kind::ALL)
        .map(|(seq, kind)| Entry { key: key(kind), ..step(seq, number(seq.into())) })
        .collect();
    store.journals(run, entries.clone()).await;
    let timed = [Kind::Timer, Kind::Timeout, Kind::Backoff].map(|kind| Wait {
        key: key(kind),
        target: None,
        due_at: Some(setup.at(SECOND)),
    });
    let targeted = [Kind::Event, Kind::Message].map(|kind| Wait {
        key: key(kind),
        target: Some(name("another name")),
        due_at: Some(setup.at(MICROSECOND)),
    });
    let waits = [&timed[..], &targeted[..], &[for_child(99_999)]].concat();
    store.spawn([new_task(99_999)]).await;
    assert!(store.apply(awaiting(run, waits.clone(), SUSPEND)).await.unwrap().suspended);
    store.command(Command::Wake(run.0)).await;
    store.signal(register(2)).await;
    let mut claimed = store.claim(2, 5).await;
    claimed.retain(|task| task.task_id == run.0);
    let mut task = claimed.remove(0);
    assert_eq!(task.journal, Some(entries));
    let by_key = |a: &Wait, b: &Wait| a.key.cmp(&b.key);
    let mut expected = waits;
    expected.sort_by(by_key);
    task.waits.sort_by(by_key);
    assert_eq!(task.waits, expected);
}

/// Checks that times come back to the microsecond, however far away they are.
pub async fn times_come_back(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let begin = setup.now();
    assert_ne!(begin.as_microsecond() % 1_000, 0, "a time that has microseconds");
    let (mut n, mut offset) = (0, Duration::ZERO);
    for step_of in [1, 999, 1_000_001, 59_999_999] {
        n += 1;
        store.spawn([new_task(n)]).await;
        setup.advance(Duration::from_micros(step_of));
        store.signal(register(1)).await;
        let run = of(&store.claim_one(1).await);
        setup.advance(MICROSECOND);
        let at = setup.now();
        let entry = Entry { at, ..step(1, json("1")) };
        store.journals(run, vec![entry.clone()]).await;
        assert_eq!(store.journal(n).await, [entry]);
        store.next(run, complete()).await;
        let info = store.info(n).await;
        let spawned_at = after(begin, offset);
        offset += Duration::from_micros(step_of + 1);
        assert_eq!((info.spawned_at, info.finished_at), (spawned_at, Some(at)));
        assert_eq!(info.started_at, Some(at - MICROSECOND));
    }
    store.signal(register(1)).await;
    for at in [setup.at(MICROSECOND), from_micros(i64::MAX), setup.at(Duration::MAX)] {
        n += 1;
        store.spawn([NewTask { start_at: Some(at), ..new_task(n) }]).await;
        let due_at = store.info(n).await.due_at.unwrap();
        assert_eq!(due_at.as_microsecond(), at.as_microsecond(), "a start in a future that far");
        let forever = store.run_one(n + 1_000).await;
        assert!(store.next(forever, suspend_until(at)).await.suspended);
        let due_at = store.info(n + 1_000).await.due_at.unwrap();
        assert_eq!(due_at.as_microsecond(), at.as_microsecond(), "a sleep that long");
    }
    let policy =
        CancellationPolicy { max_delay: Some(Duration::MAX), max_duration: Some(Duration::MAX) };
    let patient = NewTask { cancellation: policy, queue: name("patient"), ..new_task(500) };
    store.spawn([patient]).await;
    let claimed =
        store.commit(claims([claim_of(1, &["patient"], &["type"], 5)])).await.claims.remove(0);
    assert_eq!(claimed.tasks.len(), 1, "it may wait, and take, as long as it likes");
}

/// Checks that superseded entries leave the journal, and that they stay when the transition is
/// refused.
pub async fn superseded_entries(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=2).map(new_task)).await;
    for run in &runs {
        store.journals(*run, (1..=4).map(|seq| step(seq, number(u128::from(seq)))).collect()).await;
    }
    let supersede = |run: (TaskId, RunId), superseded: Vec<u64>, entries: Vec<Entry>| Transition {
        superseded,
        entries,
        ..Transition::new(run.0, run.1, GO_ON)
    };
    let stranger = (runs[1].0, runs[0].1);
    let batch = [
        supersede(runs[0], vec![2, 3, 99], vec![step(5, json("5")), step(6, json("6"))]),
        supersede(stranger, vec![1], vec![step(7, json("7"))]),
    ];
    let committed = store.commit(transitions(batch)).await;
    assert!(committed.transitions[0].is_ok() && committed.transitions[1].is_err());
    let places = async |n| store.journal(n).await.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(places(1).await, [1, 4, 5, 6]);
    assert_eq!(places(2).await, [1, 2, 3, 4]);
    // The same holds for the transition that ends the task.
    let last =
        Transition { superseded: vec![1], ..Transition::new(runs[1].0, runs[1].1, complete()) };
    store.apply(last).await.unwrap();
    assert_eq!(places(2).await, [2, 3, 4]);
}
