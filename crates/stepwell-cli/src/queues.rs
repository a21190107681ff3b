//! The command `stepwell queues`.

use anyhow::Result;
use stepwell::{Durable, QueueLimits};

use crate::args::Queues;
use crate::screen::{Screen, moment, or_dash};

pub(crate) async fn run(client: &Durable, command: Queues, screen: &Screen) -> Result<()> {
    match command {
        Queues::List => {
            let queues = client.queues().list().await?;
            let columns = [
                "QUEUE",
                "STATE",
                "PENDING",
                "RUNNING",
                "SUSPENDED",
                "READY AT",
                "MAX",
                "PER WORKER",
                "RATE",
            ];
            screen.list(
                &queues,
                columns,
                "no queue has limits or tasks that have not ended",
                |queue| {
                    let rate = queue.limits.rate;
                    [
                        queue.queue.to_string(),
                        if queue.paused { "paused".into() } else { "open".into() },
                        queue.pending.to_string(),
                        queue.running.to_string(),
                        queue.suspended.to_string(),
                        or_dash(queue.ready_at.map(moment)),
                        or_dash(queue.limits.max_running),
                        or_dash(queue.limits.max_running_per_worker),
                        or_dash(rate.map(|rate| {
                            format!("{}/{}", rate.starts, humantime::format_duration(rate.per))
                        })),
                    ]
                },
            )
        }
        Queues::Pause { queue } => {
            client.queues().pause(&queue).await?;
            screen.done(&format!("paused {queue}"))
        }
        Queues::Resume { queue } => {
            client.queues().resume(&queue).await?;
            screen.done(&format!("resumed {queue}"))
        }
        Queues::Set { queue, max_running, max_running_per_worker, rate } => {
            let limits = QueueLimits { max_running, max_running_per_worker, rate };
            client.queues().limit(&queue, limits).await?;
            screen.done(&format!("set the limits of {queue}"))
        }
    }
}
