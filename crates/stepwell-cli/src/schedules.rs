//! The command `stepwell schedules`.

use anyhow::Result;
use stepwell::{Durable, Timing};

use crate::args::Schedules;
use crate::screen::{Screen, moment, or_dash};

pub(crate) async fn run(client: &Durable, command: Schedules, screen: &Screen) -> Result<()> {
    match command {
        Schedules::List => {
            let schedules = client.schedules().list().await?;
            let columns = ["NAME", "TYPE", "TIMING", "NEXT", "LAST", "LAST TASK"];
            screen.list(&schedules, columns, "no schedules", |schedule| {
                let timing = match &schedule.timing {
                    Timing::Cron { pattern, time_zone } => format!("{pattern} ({time_zone})"),
                    Timing::Every { interval } => {
                        format!("every {}", humantime::format_duration(*interval))
                    }
                };
                let next = match schedule.paused {
                    true => "paused".into(),
                    false => or_dash(schedule.next_at.map(moment)),
                };
                [
                    schedule.name.to_string(),
                    schedule.task_type.to_string(),
                    timing,
                    next,
                    or_dash(schedule.last_tick.map(moment)),
                    or_dash(schedule.last_task),
                ]
            })
        }
        Schedules::Pause { name } => {
            client.schedules().pause(&name).await?;
            screen.done(&format!("paused {name}"))
        }
        Schedules::Resume { name } => {
            client.schedules().resume(&name).await?;
            screen.done(&format!("resumed {name}"))
        }
        Schedules::Trigger { name } => {
            let task_id = client.schedules().trigger(&name).await?.task_id;
            screen.show(&serde_json::json!({ "task_id": task_id }), || task_id.to_string())
        }
        Schedules::Delete { name } => {
            client.schedules().delete(&name).await?;
            screen.done(&format!("deleted {name}"))
        }
    }
}
