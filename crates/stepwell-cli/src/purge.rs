//! The command `stepwell purge`.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use stepwell::{Durable, TaskState};

use crate::screen::Screen;

/// The interval at which the progress is drawn again when nothing else has changed.
const TICK: Duration = Duration::from_millis(100);

pub(crate) async fn run(
    client: &Durable,
    older_than: Duration,
    state: Option<TaskState>,
    screen: &Screen,
) -> Result<()> {
    // The progress goes to the standard error output, and only to a terminal. The progress shows no
    // total, because a total would need a count.
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
