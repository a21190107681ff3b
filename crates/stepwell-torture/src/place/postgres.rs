//! PostgreSQL servers: a primary, the proxies in front of it, a pooler, and hosts that can be cut
//! off from it.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use throwaway::{PgBouncer, Postgres, Stop};

use super::proxy::{Proxy, Weather};
use crate::crew::Door;

pub(crate) const CHRONICLE: &str = "
    CREATE TABLE stepwell.chronicle (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        what text NOT NULL, task uuid NOT NULL, run uuid, seq bigint NOT NULL DEFAULT 0);
    CREATE FUNCTION stepwell.note_state() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state
            OR NEW.run_id IS DISTINCT FROM OLD.run_id
        THEN
            INSERT INTO stepwell.chronicle (what, task, run)
                VALUES (NEW.state, NEW.task_id, NEW.run_id);
            IF TG_OP = 'UPDATE' AND NEW.state = 'running' AND OLD.state <> 'running' AND NEW.paused
            THEN
                INSERT INTO stepwell.chronicle (what, task, run)
                    VALUES ('paused claim', NEW.task_id, NEW.run_id);
            END IF;
        END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION stepwell.note_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO stepwell.chronicle (what, task, run)
            VALUES (NEW.state, NEW.task_id, NEW.run_id);
        RETURN NULL;
    END $$;
    CREATE FUNCTION stepwell.note_entry() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO stepwell.chronicle (what, task, run, seq)
            SELECT 'entry', task_id, run_id, NEW.seq FROM stepwell.live_tasks
            WHERE task_id = NEW.task_id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_state AFTER INSERT OR UPDATE ON stepwell.live_tasks
        FOR EACH ROW EXECUTE FUNCTION stepwell.note_state();
    CREATE TRIGGER note_end AFTER INSERT ON stepwell.outcomes
        FOR EACH ROW EXECUTE FUNCTION stepwell.note_end();
    CREATE TRIGGER note_entry AFTER INSERT ON stepwell.journal
        FOR EACH ROW EXECUTE FUNCTION stepwell.note_entry();";

/// The servers, and the ways to reach them.
pub(crate) struct Cluster {
    primary: Mutex<Arc<Postgres>>,
    /// The proxy of the host's own client, which follows failovers and has no other misfortune.
    calm: Proxy,
    /// The proxy of all other clients.
    stormy: Proxy,
    pooler: Mutex<Option<PgBouncer>>,
    island: Option<Island>,
}

impl Cluster {
    pub(crate) async fn start() -> Result<Self> {
        let primary = tokio::task::spawn_blocking(Postgres::start).await??;
        let (calm, stormy) =
            (Proxy::start(primary.port()).await?, Proxy::start(primary.port()).await?);
        let island = match Island::raise(&stormy).await {
            Ok(island) => Some(island),
            Err(error) => {
                eprintln!(
                    "LEFT OUT: hosts that are cut off from the network, because this machine does \
                     not allow network namespaces: {error:#}"
                );
                None
            }
        };
        if throwaway::pgbouncer_binary().is_none() {
            eprintln!(
                "LEFT OUT: a pooler, because PgBouncer is not installed (Debian's package is \
                 pgbouncer)"
            );
        }
        Ok(Self {
            primary: Mutex::new(Arc::new(primary)),
            calm,
            stormy,
            pooler: Mutex::new(None),
            island,
        })
    }

    fn primary(&self) -> Arc<Postgres> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn through(&self, address: IpAddr, port: u16) -> String {
        let primary = self.primary();
        primary
            .url()
            .replace(&format!("127.0.0.1:{}/", primary.port()), &format!("{address}:{port}/"))
    }

    pub(crate) fn url(&self) -> String {
        self.through(Ipv4Addr::LOCALHOST.into(), self.calm.port())
    }

    /// Returns the access for each worker. One worker is on a host of its own. When `pooled` is set
    /// and a pooler is installed, half of the others go through the pooler.
    pub(crate) fn doors(&self, workers: usize, pooled: bool) -> Result<Vec<Door>> {
        let pooler = match throwaway::pgbouncer_binary().filter(|_| pooled) {
            Some(_) => Some(PgBouncer::start(&self.primary())?),
            None => None,
        };
        let stormy = Door {
            url: self.through(Ipv4Addr::LOCALHOST.into(), self.stormy.port()),
            namespace: None,
        };
        let mut doors = vec![stormy; workers];
        if let Some(pooler) = &pooler {
            // A statement that is prepared in one transaction does not exist in the next one.
            let url = format!("{}?statement-cache-capacity=0", pooler.url());
            doors.iter_mut().skip(1).step_by(2).for_each(|door| door.url.clone_from(&url));
        }
        if let (Some(island), Some(door)) = (&self.island, doors.first_mut()) {
            let url = self.through(island.shore.into(), island.port);
            *door = Door { url, namespace: Some(island.name.clone()) };
        }
        *self.pooler.lock().unwrap_or_else(PoisonError::into_inner) = pooler;
        Ok(doors)
    }

    pub(crate) fn sql(&self, statement: &str) -> Result<String> {
        self.primary().sql(statement)
    }

    /// Ends some sessions of the engine, and returns their number.
    pub(crate) fn terminate(&self) -> Result<u64> {
        let some = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
            WHERE application_name = 'stepwell' ORDER BY random() LIMIT 3) AS sessions";
        Ok(self.sql(some)?.parse()?)
    }

    /// Makes the server crash and start again.
    pub(crate) fn crash(&self) -> Result<()> {
        let primary = self.primary();
        primary.stop(Stop::Immediate)?;
        primary.start_again()
    }

    pub(crate) fn cut(&self) {
        self.stormy.cut();
    }

    /// Slows everything down for a time.
    pub(crate) async fn slow(&self, time: Duration) {
        self.stormy.set(Weather::Slow(Duration::from_millis(60)));
        tokio::time::sleep(time).await;
        self.stormy.set(Weather::Fair);
    }

    /// Stops all data for a time. The data then arrives, or the connections are cut.
    pub(crate) async fn swallow(&self, time: Duration) {
        self.stormy.set(Weather::Hole);
        tokio::time::sleep(time).await;
        if rand::random() {
            self.stormy.cut();
        }
        self.stormy.set(Weather::Fair);
    }

    /// Takes the network from a worker's host for a time.
    pub(crate) async fn part(&self, time: Duration) -> Result<()> {
        let Some(island) = &self.island else { return Ok(()) };
        island.link("down")?;
        tokio::time::sleep(time).await;
        island.link("up")
    }

    /// Starts a replica. With `synchronous`, the primary waits for the replica at each commit.
    pub(crate) fn replica(&self, synchronous: bool) -> Result<Postgres> {
        let replica = self.primary().replica()?;
        if synchronous {
            self.primary().use_synchronous("replica")?;
        }
        Ok(replica)
    }

    /// Makes a replica fall behind from now on.
    pub(crate) fn hold_back(&self, replica: &Postgres) -> Result<()> {
        replica.sql("ALTER SYSTEM SET primary_conninfo = ''")?;
        replica.sql("SELECT pg_reload_conf()").map(drop)
    }

    /// Kills the primary, and promotes the replica in its place.
    pub(crate) fn fail_over(&self, replica: Postgres) -> Result<()> {
        let old = self.primary();
        old.stop(Stop::Immediate)?;
        replica.promote()?;
        self.calm.switch_to(replica.port());
        self.stormy.switch_to(replica.port());
        *self.primary.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(replica);
        Ok(())
    }
}

/// A network namespace: a host of its own, with one link to this one.
struct Island {
    name: String,
    /// This host's end of the link; `shore` is its address.
    link: String,
    shore: Ipv4Addr,
    port: u16,
}

impl Island {
    async fn raise(proxy: &Proxy) -> Result<Self> {
        // The process id makes the names and the network of four addresses unique on this machine.
        let number = std::process::id();
        let [.., high, low] = (number << 2).to_be_bytes();
        let shore = Ipv4Addr::new(10, 213, high, low | 1);
        let mut island = Self {
            name: format!("torture-{number}"),
            link: format!("tort{number}"),
            shore,
            port: 0,
        };
        let (name, link, far) = (&island.name, &island.link, format!("torf{number}"));
        ip(&["netns", "add", name])?;
        ip(&["link", "add", link, "type", "veth", "peer", "name", &far, "netns", name])?;
        ip(&["address", "add", &format!("{shore}/30"), "dev", link])?;
        ip(&["link", "set", link, "up"])?;
        let there = Ipv4Addr::new(10, 213, high, low | 2);
        ip(&["-n", name, "address", "add", &format!("{there}/30"), "dev", &far])?;
        ip(&["-n", name, "link", "set", &far, "up"])?;
        island.port = proxy.listen(shore.into()).await?;
        Ok(island)
    }

    fn link(&self, state: &str) -> Result<()> {
        ip(&["link", "set", &self.link, state])
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The links of the namespace end with it. Nothing is left that could handle an error.
        let _ = ip(&["link", "delete", &self.link]);
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("there is no program `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(())
}
