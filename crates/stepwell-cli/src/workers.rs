//! The command `stepwell workers`.

use anyhow::Result;
use stepwell::{Durable, Name};

use crate::args::Workers;
use crate::screen::{Screen, moment, or_dash};

pub(crate) async fn run(client: &Durable, command: Workers, screen: &Screen) -> Result<()> {
    match command {
        Workers::List => {
            let workers = client.workers().list().await?;
            let columns = ["WORKER", "NAME", "STATE", "RUNNING", "QUEUES", "VERSION", "SINCE"];
            screen.list(&workers, columns, "no workers", |worker| {
                let queues: Vec<_> = worker.queues.iter().map(Name::as_str).collect();
                [
                    worker.worker_id.to_string(),
                    worker.name.clone(),
                    if worker.alive { worker.state.as_str().into() } else { "dead".into() },
                    format!("{}/{}", worker.running, worker.concurrency),
                    queues.join(", "),
                    or_dash(worker.code_version.as_ref()),
                    moment(worker.registered_at),
                ]
            })
        }
        Workers::Drain { worker_id } => {
            client.workers().drain(worker_id).await?;
            screen.done(&format!("told {worker_id} to end what it runs and to stop"))
        }
    }
}
