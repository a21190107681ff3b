//! Events that clients emit.

use serde::Serialize;

use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::client::Client;
use crate::client::error::Error;
use crate::client::transaction::UserTransaction;
use crate::codec::payloads;
use crate::store::NewEvent;

/// An event that is about to be emitted; await it to emit it.
///
/// The result is `true` when the event is the first of its name. The first event of a name stands:
/// a later one changes nothing, and its result is `false`.
///
/// # Errors
/// The future fails with [`Error::Payload`] when the payload does not serialise or is too large,
/// with [`Error::Name`] when a name is not valid, and with [`Error::Store`] when nothing could be
/// written.
#[must_use = "no event is emitted before this is awaited"]
pub struct Emit {
    client: Client,
    queue: Option<String>,
    /// The name and the payload of the event.
    event: Result<(Name, Payload), Error>,
}

impl Emit {
    /// Emits the event to the tasks of this queue only. Default: to the tasks of all queues.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Emits the event in a transaction of the application's own: tasks receive it if and when the
    /// transaction commits.
    ///
    /// `tx` is a transaction or connection of the database driver that the client's store uses, as
    /// for [`Spawn::in_tx`](crate::Spawn::in_tx).
    ///
    /// # Errors
    /// The errors of [`Emit`]; also [`Error::Store`] when the client's store uses another driver,
    /// or the connection is to another database.
    pub fn in_tx<S, T: UserTransaction<S, Self>>(self, tx: T) -> T::Answer {
        tx.carry_out(self)
    }

    /// Returns the client that emits the event.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the event to be emitted, with its payload encoded as the store keeps it.
    ///
    /// Store authors call this to emit an event in a transaction of the user's.
    ///
    /// # Errors
    /// The errors of [`Emit`].
    pub fn into_event(self) -> Result<NewEvent, Error> {
        let (client, mut event) = self.event()?;
        if let Some(codecs) = &client.engine.codecs {
            codecs.encode(|each| payloads::event(&mut event, each))?;
        }
        Ok(event)
    }

    fn event(self) -> Result<(Client, NewEvent), Error> {
        let (name, payload) = self.event?;
        let queue = self.queue.map(Name::new).transpose()?;
        Ok((self.client, NewEvent { name, queue, payload }))
    }
}

impl IntoFuture for Emit {
    type Output = Result<bool, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (client, event) = self.event()?;
            client.emit(event).await
        })
    }
}

impl Client {
    /// Emits an event to the tasks that await it now and those that await it later, when the
    /// builder is awaited.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error};
    /// # async fn emit(client: Client) -> Result<(), Error> {
    /// let first = client.emit_event("paid:7", &"receipt 12").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn emit_event<T: Serialize + ?Sized>(&self, name: impl AsRef<str>, payload: &T) -> Emit {
        let name = Name::awaitable(name).map_err(Error::from);
        let encode = |name: Name| {
            let payload = self.encode(payload, || format!("the event {name}"))?;
            Ok((name, payload))
        };
        Emit { client: self.clone(), queue: None, event: name.and_then(encode) }
    }

    pub(super) async fn emit(&self, event: NewEvent) -> Result<bool, Error> {
        Ok(self.engine.answered(self.engine.commit.emit(event)).await?)
    }
}
