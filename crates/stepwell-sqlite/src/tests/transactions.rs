//! Tests of steps whose work runs within the store's transaction.

use rusqlite::Result;
use stepwell_core::store::UserTransaction;

use super::*;
use crate::Work;

struct Setup {
    store: SqliteStore,
    run_id: RunId,
    _folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("stepwell.db"));
    on_writer(&store, |conn| conn.execute_batch("CREATE TABLE mine (x INTEGER)")).unwrap();
    commit(&store, register(1));
    commit(&store, spawns(vec![new_task(1)]));
    let run_id = claimed(commit(&store, claim(1, 1)))[0].run_id;
    Setup { store, run_id, _folder: folder }
}

impl Setup {
    /// Returns a batch of a transition with the work, and of a spawn.
    fn batch(&self, work: Box<dyn std::any::Any + Send>) -> Batch {
        let key = Key { kind: Kind::Step, name: name("charge"), ordinal: 1 };
        let mut with_work = transition(task_id(1), self.run_id, Next::Continue { collect: false });
        with_work.entries.push(step(1, json("\"before\"")));
        with_work.transaction = Some(UserTransaction::new(key, 2, work));
        Batch { transitions: vec![with_work], ..spawns(vec![new_task(2)]) }
    }

    fn work(
        &self,
        work: impl FnOnce(&Connection) -> anyhow::Result<Payload> + Send + 'static,
    ) -> Result<Committed, StoreError> {
        let work: Work = Box::new(work);
        wait(self.store.commit(self.batch(Box::new(work)).into()))
    }

    /// Returns the number of the user's rows, and the journal's entries.
    fn found(&self) -> (i64, Vec<Entry>) {
        let rows = on_writer(&self.store, |conn| {
            conn.query_row("SELECT count(*) FROM mine", [], |row| row.get(0)).unwrap()
        });
        (rows, wait(self.store.journal(task_id(1))).unwrap())
    }
}

fn insert(conn: &Connection) -> Result<usize> {
    conn.execute("INSERT INTO mine VALUES (1)", [])
}

fn outcome(mut committed: Committed) -> anyhow::Result<Payload> {
    committed.transitions.remove(0).unwrap().transaction.unwrap()
}

#[test]
fn work_and_its_entry_are_committed_together() {
    let setup = setup();
    let committed = setup.work(|conn| {
        insert(conn)?;
        Ok(json("42"))
    });
    assert_eq!(outcome(committed.unwrap()).unwrap(), json("42"));
    let (rows, journal) = setup.found();
    assert_eq!((rows, journal.len(), journal[1].seq), (1, 2, 2));
    assert_eq!(journal[1].outcome, Outcome::Done(json("42")));
    assert_eq!(journal[1].key.name, name("charge"));
}

#[test]
fn work_that_fails_or_panics_is_undone_and_the_rest_stands() {
    for (panics, said) in
        [(false, "out of stock"), (true, "the transaction step \"charge\" panicked: ouch")]
    {
        let setup = setup();
        let committed = setup.work(move |conn| {
            insert(conn)?;
            if panics {
                panic!("ouch");
            }
            anyhow::bail!("out of stock")
        });
        assert_eq!(outcome(committed.unwrap()).unwrap_err().to_string(), said);
        let (rows, journal) = setup.found();
        assert_eq!((rows, journal), (0, vec![step(1, json("\"before\""))]));
        assert!(wait(setup.store.task(task_id(2))).unwrap().is_some());
    }
}

#[test]
fn work_that_ends_the_transaction_fails_the_batch_of_which_nothing_stands() {
    for ending in
        ["COMMIT", "END", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN", "RELEASE stepwell_work"]
    {
        let setup = setup();
        let error = setup
            .work(move |conn| {
                insert(conn)?;
                let _ = conn.execute_batch(ending);
                Ok(json("1"))
            })
            .unwrap_err();
        assert!(
            error.to_string().contains("the transaction step \"charge\" ended the store's"),
            "{error}"
        );
        assert_eq!(setup.found(), (0, vec![]), "{ending}");
        assert!(wait(setup.store.task(task_id(2))).unwrap().is_none());
        assert_eq!(commit(&setup.store, spawns(vec![new_task(2)])).spawns.len(), 1);
    }
}

#[test]
fn work_for_another_store_is_refused() {
    let setup = setup();
    let committed =
        wait(setup.store.commit(setup.batch(Box::new("not a closure")).into())).unwrap();
    let error = outcome(committed).unwrap_err().to_string();
    assert!(error.contains("was made for another kind of store: this one is SQLite"), "{error}");
}
