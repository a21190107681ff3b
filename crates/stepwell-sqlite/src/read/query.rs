//! Queries, which change nothing.

use std::cmp::Reverse;
use std::time::Duration;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};
use stepwell_core::store::{
    ArrivedMessage, Ends, Finish, MessageId, TaskFilter, TaskInfo, TaskState,
};
use stepwell_core::{Entry, Page, Payload, Room, TaskId};

use crate::base::rows::{self, Sql, Statements as _, entry, get, opt};
use crate::read::labels::{self, Conditions, Label, rarest_first};

/// The queue of most tasks, whose newest tasks are found without an index. Tasks of other queues
/// have an index.
const DEFAULT: &str = "default";

const INFO: &str = "SELECT task_id, run_id, task_type, queue,
        CASE WHEN compensating = 1 AND finished_at IS NULL THEN 'compensating' ELSE state END,
        params, output, failure, headers, priority, attempt, max_attempts, parent, idempotency_key,
        cancel_requested, spawned_at, started_at, finished_at, due_at, concurrency_key,
        code_version, retry, max_duration, cancel_at, paused, scope";

fn info(row: &Row<'_>) -> Result<TaskInfo> {
    let text = |column| -> Result<Option<&str>> { Ok(row.get_ref(column)?.as_str_or_null()?) };
    let (headers, retry) = (row.get_ref(8)?.as_str()?, row.get_ref(21)?.as_str()?);
    let (mut headers, retry) = TaskInfo::options(headers, retry);
    let mut count = |what, column| -> Result<u32> {
        Ok(TaskInfo::number(&mut headers, what, row.get(column)?, [0, u32::MAX]))
    };
    let (attempt, max_attempts) = (count("`attempt`", 10)?, count("`max_attempts`", 11)?);
    let priority = TaskInfo::number(&mut headers, "`priority`", row.get(9)?, [i32::MIN, i32::MAX]);
    let max_duration = row.get::<_, Option<i64>>(22)?.map(|micros| {
        Duration::from_micros(TaskInfo::number(&mut headers, "`max_duration`", micros, [0, 0]))
    });
    Ok(TaskInfo {
        task_id: get(row, 0)?,
        run_id: get(row, 1)?,
        task_type: get(row, 2)?,
        queue: get(row, 3)?,
        state: get(row, 4)?,
        params: Payload::stored(row.get_ref(5)?.as_str()?, "`params`"),
        output: text(6)?.map(|output| Payload::stored(output, "`output`")),
        failure: opt(row, 7)?,
        headers,
        priority,
        attempt,
        max_attempts,
        parent: opt(row, 12)?,
        idempotency_key: opt(row, 13)?,
        cancel_requested: row.get(14)?,
        spawned_at: get(row, 15)?,
        started_at: opt(row, 16)?,
        finished_at: opt(row, 17)?,
        due_at: opt(row, 18)?,
        concurrency_key: opt(row, 19)?,
        code_version: opt(row, 20)?,
        retry,
        max_duration,
        cancel_at: opt(row, 23)?,
        paused: row.get(24)?,
        scope: get(row, 25)?,
    })
}

pub(crate) fn task(conn: &Connection, task_id: TaskId) -> Result<Option<TaskInfo>> {
    let sql = format!("{INFO} FROM stepwell_tasks WHERE task_id = ?1");
    conn.prepare_cached(&sql)?.query_row(params![Sql(&task_id)], info).optional()
}

pub(crate) fn ends(conn: &Connection, tasks: &[TaskId]) -> Result<Ends> {
    let ids = serde_json::to_string(tasks)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let sql = "SELECT task_id, state, output, failure FROM stepwell_tasks
        WHERE task_id IN (SELECT value FROM json_each(?1)) ORDER BY task_id";
    conn.page(usize::MAX, "a task", sql, params![ids], |row| {
        Ok((get(row, 0)?, Finish::of(get(row, 1)?, opt(row, 2)?, opt(row, 3)?)))
    })
}

pub(crate) fn tasks(conn: &Connection, filter: &TaskFilter) -> Result<Page<TaskInfo>> {
    let Some(mut labels) = labels::asked(filter) else { return Ok(Page::default()) };
    rarest_first(conn, &mut labels)?;
    let page = |from: &From| {
        let (sql, params) = list(filter, *from, &labels);
        let params: Vec<&dyn ToSql> = params.iter().map(|param| &**param).collect();
        rows::page(&mut *conn.prepare_cached(&sql)?, filter.limit, "a task", &*params, info)
    };
    let mut pages = From::all(filter, &labels).iter().map(page).collect::<Result<Vec<_>>>()?;
    if pages.len() == 1 {
        return Ok(pages.remove(0));
    }
    // All tasks are known down to the end of the page that ends first.
    let end = pages.iter().filter_map(|page| page.next).max();
    let mut found: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    found.retain(|info| end.is_none_or(|end| info.task_id >= end));
    found.sort_unstable_by_key(|info| Reverse(info.task_id));
    let Page { items, next } = Page::of(found, filter.limit);
    Ok(Page { items, next: next.or(end) })
}

/// The table with which a list begins. Each table is read in the order of the ids until the page is
/// full.
#[derive(Clone, Copy)]
pub(crate) enum From {
    /// All tasks.
    Tasks,
    /// The tasks of the first label.
    Label,
    /// The tasks whose own scope requires the queue of the filter's scope.
    OwnQueue,
    /// The tasks without a scope in the queue of the filter's scope.
    Queue,
}

impl From {
    fn all(filter: &TaskFilter, labels: &[Label<'_>]) -> &'static [Self] {
        match (labels.is_empty(), filter.scope.only_queue()) {
            (false, _) => &[Self::Label],
            (true, Some(_)) => &[Self::OwnQueue, Self::Queue],
            (true, None) => &[Self::Tasks],
        }
    }
}
/// Returns the statement for a filter with these labels, and its parameters. The statement has only
/// the conditions of the filter, so that SQLite picks the index for them. Conditions of partial
/// indexes are literals. The caller stops reading when the page is full.
pub(crate) fn list<'a>(
    filter: &'a TaskFilter,
    from: From,
    labels: &[Label<'a>],
) -> (String, Vec<Box<dyn ToSql + 'a>>) {
    let mut asked = Conditions::default();
    let (tables, id) = match from {
        From::Tasks | From::Queue => ("stepwell_tasks", "task_id"),
        // `CROSS JOIN` forces SQLite to begin with this table.
        From::Label | From::OwnQueue => (
            "(SELECT name, value, own, task_id AS labelled FROM stepwell_labels)
                CROSS JOIN stepwell_tasks ON task_id = labelled",
            "labelled",
        ),
    };
    let mut begin = |label: Label<'a>| {
        let own =
            if label.own { "name = ? AND value = ? AND own = 1" } else { "name = ? AND value = ?" };
        asked.add(own, [Box::new(label.name) as _, Box::new(label.value) as _]);
    };
    match (from, filter.scope.only_queue()) {
        (From::Label, _) => labels.first().copied().into_iter().for_each(begin),
        (From::OwnQueue, Some(queue)) => {
            begin(Label { name: "", value: queue.as_str(), own: true });
        }
        (From::Queue, Some(queue)) => {
            let not_default =
                if queue.as_str() == DEFAULT { "" } else { " AND queue <> 'default'" };
            asked.add(
                &format!("queue = ? AND scope = ''{not_default}"),
                [Box::new(Sql(queue)) as _],
            );
        }
        _ => {}
    }
    labels.iter().skip(1).for_each(|label| asked.label(*label));
    if matches!(from, From::Label) {
        asked.queue_of(&filter.scope);
    }
    if let Some(state) = filter.state {
        let state = match state {
            TaskState::Compensating => "compensating = 1 AND finished_at IS NULL".into(),
            state if state.is_finished() => format!("state = '{state}'"),
            state => format!("state = '{state}' AND compensating = 0"),
        };
        asked.add(&state, None);
    }
    let given: [(&str, Option<Box<dyn ToSql + 'a>>); 4] = [
        ("queue = ?", filter.queue.as_ref().map(|queue| Box::new(Sql(queue)) as _)),
        ("task_type = ?", filter.task_type.as_ref().map(|task_type| Box::new(Sql(task_type)) as _)),
        ("parent = ?", filter.parent.as_ref().map(|parent| Box::new(Sql(parent)) as _)),
        (&format!("{id} < ?"), filter.before.as_ref().map(|before| Box::new(Sql(before)) as _)),
    ];
    for (condition, param) in given {
        if let Some(param) = param {
            asked.add(condition, [param]);
        }
    }
    (
        format!("{INFO} FROM {tables} WHERE {} ORDER BY {id} DESC LIMIT -1", asked.all()),
        asked.params,
    )
}

const JOURNAL: &str = "SELECT seq, kind, name, ordinal, outcome, payload, at FROM stepwell_journal \
                       WHERE task_id = ?1 ORDER BY seq";

pub(crate) fn journal(conn: &Connection, task_id: TaskId) -> Result<Vec<Entry>> {
    conn.all(JOURNAL, params![Sql(&task_id)], entry)
}

/// Returns a journal, or `None` when the answer has no room for it.
pub(crate) fn short_journal(
    conn: &Connection,
    task_id: TaskId,
    room: &mut Room,
) -> Result<Option<Vec<Entry>>> {
    let mut statement = conn.prepare_cached(JOURNAL)?;
    let mut rows = statement.query(params![Sql(&task_id)])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let payload = row.get_ref(5)?.as_bytes().map_or(0, <[u8]>::len);
        if !room.take(payload) {
            return Ok(None);
        }
        entries.push(entry(row)?);
    }
    Ok(Some(entries))
}

/// Selects the messages in a task's mailbox after the given one.
pub(crate) const MESSAGES: &str = "SELECT id, topic, payload FROM stepwell_messages
    WHERE task_id = ?1 AND id > ?2 ORDER BY id";

/// Returns the messages in a task's mailbox after the given one.
pub(crate) fn messages(
    conn: &Connection,
    task_id: TaskId,
    behind: Option<MessageId>,
) -> Result<Page<ArrivedMessage>> {
    let asked = params![Sql(&task_id), behind.unwrap_or(MessageId::MIN)];
    conn.part(&mut Room::default(), usize::MAX, MESSAGES, asked, |row| {
        Ok(ArrivedMessage { id: row.get(0)?, topic: get(row, 1)?, payload: get(row, 2)? })
    })
}
