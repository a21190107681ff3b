//! The routes that say whether the server runs, and whether it can work. The routes need no token.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use crate::app::App;
use crate::problem::Problem;

/// The time that the store has to answer.
const TIME: Duration = Duration::from_secs(5);

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new().route("/health/live", get(async || "live\n")).route("/health/ready", get(ready))
}

async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    match tokio::time::timeout(TIME, app.client.task_types()).await {
        Ok(Ok(_)) => Ok("ready\n"),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::busy("the store does not answer")),
    }
}
