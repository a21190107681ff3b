//! Steps that give something too large for the journal.

use stepwell::{TaskContext, TaskResult};
use tokio::task::spawn_blocking;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Does blocking work in a step. What is small of its result is journaled; what is large is handed
/// over.
///
/// The large part is lost with the process: `None` when the step's result comes from the journal.
/// Then the transaction for which it was made has either been journaled as well, and needs it no
/// more, or has to do the work again.
pub(crate) async fn step_with_aside<S, L>(
    ctx: &TaskContext,
    name: &str,
    work: impl FnOnce() -> anyhow::Result<(S, L)> + Send + 'static,
) -> TaskResult<Option<L>>
where
    S: Serialize + DeserializeOwned + Send + 'static,
    L: Send + 'static,
{
    let mut aside = None;
    let keep = &mut aside;
    ctx.step(name, || async move {
        let (small, large) = spawn_blocking(work).await??;
        *keep = Some(large);
        Ok(small)
    })
    .await?;
    Ok(aside)
}
