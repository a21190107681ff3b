//! The command `stepwell events`.

use anyhow::Result;
use stepwell::Durable;

use crate::args::Events;
use crate::input;
use crate::screen::Screen;

pub(crate) async fn run(client: &Durable, command: Events, screen: &Screen) -> Result<()> {
    let Events::Emit { name, payload, queue } = command;
    let payload = input::json(payload.as_deref())?;
    let event = client.emit_event(&name, &payload);
    let first = match queue {
        Some(queue) => event.queue(queue).await?,
        None => event.await?,
    };
    screen.show(&serde_json::json!({ "event": name, "first": first }), || match first {
        true => format!("emitted {name}"),
        false => format!("{name} was emitted before, and that stands"),
    })
}
