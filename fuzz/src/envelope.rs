//! Envelopes of payloads. The first byte of an input chooses the codecs; the rest is what the
//! database holds.

use std::sync::Arc;

use serde_json::value::RawValue;
use stepwell::codec::{Compression, Encryption, Key};
use stepwell::store::Encoded;
use stepwell::store::{Batch, CancellationPolicy, NewTask};
use stepwell::{
    Codec, Headers, MemoryStore, Name, Payload, PayloadError, RetryStrategy, Scope, Store, TaskId,
    TokioRuntime,
};
use uuid::Uuid;

use crate::{in_virtual_time, said};

pub(crate) fn run(data: &[u8]) {
    let Some((which, text)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    // A store's column holds JSON; what does not never comes to a codec.
    if serde_json::from_str::<&RawValue>(text).is_err() {
        return;
    }
    let encryption = || Encryption::new(Key::new("k", [7; 32]).unwrap());
    let codecs: Vec<Arc<dyn Codec>> = match which % 4 {
        0 => vec![Arc::new(Compression::new())],
        1 => vec![Arc::new(encryption())],
        2 => vec![Arc::new(Compression::new()), Arc::new(encryption())],
        _ => vec![Arc::new(Compression::new()), Arc::new(encryption().accept_plain())],
    };
    let is_required = matches!(which % 4, 1 | 2);
    in_virtual_time(async {
        let memory = MemoryStore::new(Arc::new(TokioRuntime::current()));
        let store = Encoded::over(Arc::new(memory.connect()), &codecs);
        let (by_others, ours, moved) = (id(1), id(2), id(3));
        spawn(&memory, by_others, Payload::from_json(text)).await;
        let read = params(&*store, by_others).await;
        assert!(!is_required || read.unreadable().is_some(), "it takes what is not encrypted");
        is_read_or_said(&read, text.len());

        spawn(&*store, ours, Payload::from_json(text)).await;
        let kept = params(&memory, ours).await;
        assert!(
            !is_required || kept.as_str().starts_with(r#"{"$stepwell":["#),
            "it is kept in plain"
        );
        assert_eq!(params(&*store, ours).await.as_str(), text, "kept as {kept}");

        spawn(&memory, moved, kept).await;
        let read = params(&*store, moved).await;
        assert!(!is_required || read.unreadable().is_some(), "what was moved is taken");
    });
}

/// What a store gives can be shown in a list, and where it is no value, it says why.
fn is_read_or_said(payload: &Payload, input: usize) {
    let shown = serde_json::to_string(payload).expect("whatever a store gives can be shown");
    serde_json::from_str::<&RawValue>(&shown).unwrap();
    if let Some(error) = payload.unreadable() {
        said(error, input);
        assert!(matches!(payload.decode::<()>(), Err(PayloadError::Unreadable { .. })));
    }
}

fn id(number: u128) -> TaskId {
    Uuid::from_u128(number).into()
}

async fn params(store: &dyn Store, task_id: TaskId) -> Payload {
    store.task(task_id).await.unwrap().unwrap().params
}

async fn spawn(store: &dyn Store, task_id: TaskId, params: Payload) {
    let name = Name::new("name").unwrap();
    let task = NewTask {
        task_id,
        run_id: Uuid::nil().into(),
        task_type: name.clone(),
        queue: name,
        params,
        headers: Headers::new(),
        scope: Scope::default(),
        priority: 0,
        max_attempts: 1,
        retry: RetryStrategy::default(),
        start_at: None,
        idempotency_key: None,
        concurrency_key: None,
        coalesce: None,
        code_version: None,
        cancellation: CancellationPolicy::default(),
        parent: None,
        claim_by: None,
    };
    store.commit(Arc::new(Batch { spawns: vec![task], ..Batch::default() })).await.unwrap();
}
