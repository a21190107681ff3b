//! `stepwell purge`.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use stepwell::{Durable, TaskState};

use crate::screen::Screen;

/// How often what is shown is drawn anew, where nothing else has changed.
const TICK: Duration = Duration::from_millis(100);

pub(crate) async fn run(
    client: &Durable,
    older_than: Duration,
    state: Option<TaskState>,
    screen: &Screen,
) -> Result<()> {
    // On the standard error output, and only where that is a terminal. How many there are, nobody
    // knows without a count.
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template(
        "{spinner} removed {human_pos} tasks, {per_sec}",
    )?);
    bar.enable_steady_tick(TICK);
    let purged =
        client.purge_with(older_than, state, |purged| bar.set_position(purged as u64)).await;
    bar.finish_and_clear();
    let purged = purged?;
    screen.show(&serde_json::json!({ "purged": purged }), || match purged {
        1 => "removed 1 task".into(),
        n => format!("removed {n} tasks"),
    })
}
