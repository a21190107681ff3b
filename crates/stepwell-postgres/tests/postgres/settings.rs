//! Defaults of the database and of the role that Stepwell must not depend on: with each of them,
//! directly and through a pooler in transaction mode, tasks live their whole lives.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use stepwell::{Durable, SpawnOptions, StoreError, TaskContext, TaskFilter, WorkerOptions};
use stepwell_postgres::{PostgresOptions, PostgresStore, TransactionExt as _, sqlx};
use throwaway::{PgBouncer, Postgres};

const SETTINGS: [(&str, &str); 26] = [
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "'10ms'"),
    ("lock_timeout", "'1ms'"),
    ("idle_in_transaction_session_timeout", "'10ms'"),
    ("idle_session_timeout", "'300ms'"),
    ("synchronous_commit", "off"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("row_security", "off"),
    ("TimeZone", "'Pacific/Chatham'"),
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "'sql_standard'"),
    ("client_encoding", "'LATIN1'"),
    ("extra_float_digits", "'-15'"),
    ("bytea_output", "escape"),
    ("search_path", "'nowhere'"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("quote_all_identifiers", "on"),
    ("session_replication_role", "replica"),
    ("plpgsql.variable_conflict", "use_column"),
    ("xmloption", "document"),
    ("default_toast_compression", "pglz"),
];

/// What PostgreSQL has from version 17 on.
const SINCE_17: [(&str, &str); 1] = [(TRANSACTION_TIMEOUT, "'50ms'")];
const TRANSACTION_TIMEOUT: &str = "transaction_timeout";

/// Lifts the limit from a transaction of the user's own.
const WITHOUT_LIMIT: &str = "SELECT set_config('transaction_timeout', '0', true)
    WHERE current_setting('transaction_timeout', true) IS NOT NULL";

/// How long a step's transaction takes: longer than most time limits. That of all transactions
/// holds for it, too.
const LONG: Duration = Duration::from_millis(30);

/// Lives through whatever there is. The user's own transaction goes to the server directly: a
/// pooler may give it a session in which a client listens.
async fn lives(url: &str, direct: &str, paying: Duration) {
    let store = PostgresStore::connect(PostgresOptions::parse(url).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    let task = move |name: String, ctx: TaskContext| async move {
        let step = ctx.step("step", || async { Ok("schön \\ 漢字 🦀".to_owned()) }).await?;
        ctx.sleep_for("nap", Duration::from_millis(1)).await?;
        let heard: String = ctx.await_event(("event", &name), None).await?;
        let received: String = ctx.recv("topic", None).await?;
        let paid = ctx.transaction("pay", move |tx| {
            Box::pin(async move {
                tokio::time::sleep(paying).await;
                Ok(sqlx::query_scalar::<_, String>("SELECT 'paid'::text").fetch_one(tx).await?)
            })
        });
        Ok([step, heard, received, paid.await?].join(", "))
    };
    client.register_fn("life", task).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let keyed = || SpawnOptions::new().idempotency_key("one").concurrency_key("turn");
    let task = client.spawn_named("life", "a").options(keyed()).await.unwrap();
    client.emit_event("event:a", &"heard").await.unwrap();
    assert!(client.send(task.task_id, "topic", &"received").await.is_ok());
    let all = "schön \\ 漢字 🦀, heard, received, paid";
    assert_eq!(client.wait::<String>(task.task_id).await.unwrap(), all);

    let mut conn = PgConnection::connect(direct).await.unwrap();
    conn.execute(
        "BEGIN READ WRITE; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
                  SET LOCAL idle_in_transaction_session_timeout = 0",
    )
    .await
    .unwrap();
    conn.execute(WITHOUT_LIMIT).await.unwrap();
    let again = client.spawn_named("life", "a").options(keyed()).in_tx(&mut conn).await.unwrap();
    assert_eq!((again.task_id, again.created()), (task.task_id, false));
    let options = SpawnOptions::new().idempotency_key("two").concurrency_key("turn");
    let task = client.spawn_named("life", "b").options(options).in_tx(&mut conn).await.unwrap();
    client.emit_event("event:b", &"heard").in_tx(&mut conn).await.unwrap();
    conn.execute("COMMIT").await.unwrap();
    client.send(task.task_id, "topic", &"received").await.unwrap();
    assert_eq!(client.wait::<String>(task.task_id).await.unwrap(), all);

    assert_eq!(client.tasks(TaskFilter::default()).await.unwrap().items.len(), 2);
    let export = client.export(task.task_id).await.unwrap();
    client.delete(task.task_id).await.unwrap();
    client.import(export).await.unwrap();
    assert_eq!(client.wait::<String>(task.task_id).await.unwrap(), all);
    client.purge(Duration::ZERO, None).await.unwrap();
    worker.shutdown().await;
}

fn in_database(url: &str, database: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_path(database);
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_default_of_the_database_or_the_role_is_in_the_way() {
    let postgres = Postgres::start().unwrap();
    let pooler = PgBouncer::start(&postgres).unwrap();
    let (direct, pooled) = (postgres.url(), format!("{}?statement-cache-capacity=0", pooler.url()));
    let is_new =
        postgres.sql("SHOW server_version_num").unwrap().parse::<u32>().unwrap() >= 170_000;
    let there = SETTINGS.into_iter().chain(SINCE_17.into_iter().filter(|_| is_new));
    let all = there.enumerate().map(|(n, (setting, value))| {
        // Every other one as the role's default.
        let to = if n % 2 == 0 { "DATABASE" } else { "ROLE CURRENT_USER IN DATABASE" };
        let set = format!("ALTER {to} hostile_{n} SET {setting} = {value}");
        let paying = if setting == TRANSACTION_TIMEOUT { Duration::ZERO } else { LONG };
        tokio::spawn(lives_with(
            set,
            format!("hostile_{n}"),
            direct.clone(),
            pooled.clone(),
            paying,
        ))
    });
    for lived in futures_util::future::join_all(all).await {
        lived.unwrap();
    }
}

async fn lives_with(
    set: String,
    database: String,
    direct: String,
    pooled: String,
    paying: Duration,
) {
    static FEW: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(6);
    let _few = FEW.acquire().await.unwrap();
    let mut admin = PgConnection::connect(&direct).await.unwrap();
    admin
        .execute(sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {database}"))))
        .await
        .unwrap();
    admin.execute(sqlx::raw_sql(AssertSqlSafe(set.clone()))).await.unwrap();
    let own = in_database(&direct, &database);
    for url in [direct, pooled] {
        eprintln!("{set}: {url}");
        let here = in_database(&url, &database);
        let lived = tokio::time::timeout(Duration::from_secs(60), lives(&here, &own, paying));
        lived.await.unwrap_or_else(|_| panic!("{set}: {url}: it hangs"));
        let mut conn = PgConnection::connect(&own).await.unwrap();
        conn.execute("BEGIN READ WRITE; SET LOCAL statement_timeout = 0").await.unwrap();
        conn.execute(WITHOUT_LIMIT).await.unwrap();
        conn.execute("DROP SCHEMA stepwell CASCADE; COMMIT").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_durable_though_the_role_does_not_wait_for_the_disk() {
    let postgres = Postgres::start().unwrap();
    let mut admin = PgConnection::connect(&postgres.url()).await.unwrap();
    admin.execute("ALTER ROLE CURRENT_USER SET synchronous_commit = off").await.unwrap();
    let store =
        PostgresStore::connect(PostgresOptions::parse(&postgres.url()).unwrap()).await.unwrap();
    drop(store);
    // Each commit says at its end how it commits.
    let witness = "CREATE TABLE public.witness (synchronous text, said text);
        CREATE FUNCTION public.bear() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.witness
            VALUES (current_setting('synchronous_commit'), TG_TABLE_NAME);
            RETURN NULL;
        END $$";
    admin.execute(witness).await.unwrap();
    for table in ["tasks", "journal", "outcomes", "events", "outbox", "waits"] {
        let bear = format!(
            "CREATE CONSTRAINT TRIGGER bear AFTER INSERT ON stepwell.{table} INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION public.bear()"
        );
        admin.execute(sqlx::raw_sql(AssertSqlSafe(bear))).await.unwrap();
    }
    lives(&postgres.url(), &postgres.url(), LONG).await;
    let witnesses = admin
        .fetch_all(
            "SELECT synchronous, array_agg(DISTINCT said)::text FROM public.witness GROUP BY 1",
        )
        .await
        .unwrap();
    let said: Vec<(String, String)> =
        witnesses.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        said,
        [("on".to_owned(), "{events,journal,outbox,outcomes,tasks,waits}".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let postgres = Postgres::start().unwrap();
    let mut admin = PgConnection::connect(&postgres.url()).await.unwrap();
    admin
        .execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .await
        .unwrap();
    let options = PostgresOptions::parse(&in_database(&postgres.url(), "latin")).unwrap();
    let Err(StoreError::Open { reason, .. }) = PostgresStore::connect(options).await else {
        panic!("accepted")
    };
    assert!(reason.contains("encoding is LATIN1"), "{reason}");
}

/// The names of all functions of PostgreSQL's that the schema's functions, or statements in this
/// crate, call.
const CALLS: &str = "SELECT DISTINCT b.oid, b.proname FROM pg_proc b, (
        SELECT p.prosrc AS text FROM pg_proc p WHERE p.pronamespace = 'stepwell'::regnamespace
        UNION ALL SELECT $1
    ) s, regexp_matches(s.text, '([a-z_0-9]+)\\s*\\(', 'g') AS m
    WHERE b.pronamespace = 'pg_catalog'::regnamespace AND b.proname = m[1]";

/// Puts an overload of a function into `public` that fits better than PostgreSQL's own: for each
/// type that a parameter of any type may stand for.
const OVERLOAD: &str = "DO $do$ DECLARE
    p record; t text; parameters text; made int := 0;
BEGIN
    FOR p IN SELECT * FROM called JOIN pg_proc USING (oid) WHERE pronargs > 0 LOOP
        FOREACH t IN ARRAY ARRAY['uuid', 'text', 'int8', 'int4', 'bool', 'timestamptz', 'jsonb',
            'json']
        LOOP
            SELECT string_agg(CASE
                WHEN a::regtype::text IN ('anyarray', 'anycompatiblearray') THEN t || '[]'
                WHEN a::regtype::text IN ('anyelement', 'anynonarray', 'anycompatible',
                    'anycompatiblenonarray', '\"any\"') THEN t
                WHEN a::regtype::text IN ('regclass', 'oid', 'cstring', 'internal', 'bigint') THEN t
                ELSE a::regtype::text END, ', ' ORDER BY i) INTO parameters
            FROM unnest(p.proargtypes) WITH ORDINALITY AS x(a, i);
            BEGIN
                EXECUTE format($f$CREATE OR REPLACE FUNCTION public.%I(%s) RETURNS %s
                    LANGUAGE plpgsql AS $x$
                    BEGIN RAISE EXCEPTION 'the attacker''s code runs: %s'; END $x$ $f$,
                    p.proname, parameters,
                    CASE WHEN p.prorettype = 'anyarray'::regtype THEN t || '[]'
                        WHEN p.prorettype::regtype::text LIKE 'any%' THEN t
                        ELSE p.prorettype::regtype::text END, p.proname);
                made := made + 1;
            EXCEPTION WHEN others THEN NULL;
            END;
        END LOOP;
    END LOOP;
    IF made < 200 THEN RAISE EXCEPTION 'only % overloads were made', made; END IF;
END $do$";

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_others_put_in_the_way_are_not_called() {
    let postgres = Postgres::start().unwrap();
    let mut admin = PgConnection::connect(&postgres.url()).await.unwrap();
    PostgresStore::connect(PostgresOptions::parse(&postgres.url()).unwrap()).await.unwrap();
    let mut source = String::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        source += &std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
    }
    admin.execute("CREATE TABLE public.called (oid oid, name text)").await.unwrap();
    let insert = format!("INSERT INTO public.called {CALLS}");
    sqlx::query(AssertSqlSafe(insert)).bind(source).execute(&mut admin).await.unwrap();
    admin.execute(OVERLOAD).await.unwrap();
    // An operator on arrays, as well.
    let operators = "CREATE FUNCTION public.attack(text[], text[]) RETURNS text[]
            LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s code runs: ||'; END $$;
        CREATE OPERATOR public.|| (FUNCTION = public.attack, LEFTARG = text[], RIGHTARG = text[])";
    admin.execute(sqlx::raw_sql(operators)).await.unwrap();
    assert!(
        admin.execute("SELECT cardinality('{}'::uuid[])").await.is_err(),
        "the overloads are in the way of others"
    );
    lives(&postgres.url(), &postgres.url(), LONG).await;
    // What is created by a migration is bound to PostgreSQL's own, too.
    admin.execute("DROP SCHEMA stepwell CASCADE").await.unwrap();
    lives(&postgres.url(), &postgres.url(), LONG).await;
}
