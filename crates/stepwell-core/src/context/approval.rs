//! Approvals: decisions of people that tasks wait for.
//!
//! ```text
//!   the task                      the journal                         people
//!   await_approval ─▶ approval "budget" {request, assignee}      ◀── client.approvals().list()
//!        │            event "approval/<task>/budget/…" (waits)   ◀── the first decision emits it
//!        └─ between: reminders and escalations, steps like any other
//! ```

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::name::{InvalidName, Name, StepName};
use crate::base::payload::Payload;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::base::time::{Timestamp, after, until};
use crate::context::TaskContext;
use crate::engine::task_error::{TaskError, TaskResult};
use crate::store::page::{ITEM_BYTES, Listed};
use crate::store::{TaskInfo, Wait};

/// The prefix of the names of all events that carry decisions.
pub(crate) const PREFIX: &str = "approval/";

/// Returns the prefix of the names of the events that carry decisions for this task.
fn prefix_of(task_id: TaskId) -> String {
    format!("{PREFIX}{task_id}/")
}

/// Returns the event of a wait, if it carries a decision for this very task.
pub(crate) fn awaited_by(task_id: TaskId, wait: &Wait) -> Option<&Name> {
    let is_own = |event: &&Name| {
        let event = event.as_str();
        event.starts_with(PREFIX) && event.starts_with(&prefix_of(task_id))
    };
    wait.target.as_ref().filter(|_| wait.key.kind == Kind::Event).filter(is_own)
}

/// Returns the event that carries the decision of an approval.
///
/// Its name holds the time at which the approval was asked for. A task that begins again from the
/// start therefore asks again.
fn event_of(task_id: TaskId, label: &str, asked_at: Timestamp) -> Result<Name, InvalidName> {
    Name::new(format!("{}{label}/{}", prefix_of(task_id), asked_at.as_microsecond()))
}

/// Returns the label of the approval whose decision the event carries.
pub(crate) fn label_of(event: &Name) -> Option<&str> {
    let (_, rest) = event.as_str().strip_prefix(PREFIX)?.split_once('/')?;
    rest.rsplit_once('/').map(|(label, _)| label)
}

/// The decision of an approval: the answer, the person, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision<T> {
    /// The request was approved.
    Approved {
        /// The person who decided.
        by: String,
        /// The reason.
        reason: Option<String>,
        /// The value that the approval carries.
        value: T,
    },
    /// The request was rejected.
    Rejected {
        /// The person who decided.
        by: String,
        /// The reason.
        reason: Option<String>,
    },
}

/// Implemented by hand: the derived code of a tagged enum would round numbers in `value` that do
/// not fit into a `serde_json::Value`.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Decision<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            Approved,
            Rejected,
        }

        /// Reads a value, which may be `null`.
        fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
            value: D,
        ) -> Result<Option<T>, D::Error> {
            T::deserialize(value).map(Some)
        }

        #[derive(Deserialize)]
        #[serde(bound = "T: Deserialize<'de>")]
        struct Parts<T> {
            decision: Word,
            by: String,
            reason: Option<String>,
            #[serde(default = "Option::default", deserialize_with = "given")]
            value: Option<T>,
        }

        let Parts { decision, by, reason, value } = Parts::<T>::deserialize(deserializer)?;
        match (decision, value) {
            (Word::Rejected, _) => Ok(Self::Rejected { by, reason }),
            (Word::Approved, Some(value)) => Ok(Self::Approved { by, reason, value }),
            (Word::Approved, None) => {
                let value = T::deserialize(().into_deserializer())?;
                Ok(Self::Approved { by, reason, value })
            }
        }
    }
}

impl<T> Decision<T> {
    /// Returns an approval without a reason.
    pub fn approved(by: impl Into<String>, value: T) -> Self {
        Self::Approved { by: by.into(), reason: None, value }
    }

    /// Returns a rejection with a reason.
    pub fn rejected(by: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Rejected { by: by.into(), reason: Some(reason.into()) }
    }

    /// Returns whether the request was approved.
    pub const fn is_approved(&self) -> bool {
        matches!(self, Self::Approved { .. })
    }
}

/// The journaled form of an approval, written when it is asked for, and again at each escalation.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    request: Payload,
    assignee: Option<String>,
}

/// An approval that a task waits for; see [`Approvals::list`](crate::Approvals::list).
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct ApprovalInfo {
    /// The id of the task that waits for the approval.
    pub task_id: TaskId,
    /// The name of the approval, with `#2`, `#3`… for further ones of the same name.
    pub name: String,
    /// The name of the task's type.
    pub task_type: Name,
    /// The task's queue.
    pub queue: Name,
    /// The request that is to be decided.
    pub request: Payload,
    /// The person to whom the approval is assigned now.
    pub assignee: Option<String>,
    /// The time at which the approval was asked for.
    pub asked_at: Timestamp,
    /// The time at which the task's wait ends.
    pub due_at: Option<Timestamp>,
}

impl ApprovalInfo {
    /// Reads the approval whose decision the task awaits by the event, from the task's journal.
    pub(crate) fn read(
        info: &TaskInfo,
        journal: &[Entry],
        event: &Name,
        due_at: Option<Timestamp>,
    ) -> Option<Self> {
        let label = label_of(event)?;
        let mut asked = journal
            .iter()
            .filter(|entry| entry.key.kind == Kind::Approval && entry.key.label() == label);
        let (mut last, mut asked_at) = (None, None);
        for entry in asked.by_ref() {
            let Outcome::Done(payload) = &entry.outcome else { continue };
            asked_at.get_or_insert(entry.at);
            last = payload.decode::<Asked>().ok().or(last);
        }
        let Asked { request, assignee } = last?;
        Some(Self {
            task_id: info.task_id,
            name: label.to_owned(),
            task_type: info.task_type.clone(),
            queue: info.queue.clone(),
            request,
            assignee,
            asked_at: asked_at?,
            due_at,
        })
    }
}

/// A function that notifies people while a task waits for an approval.
trait Notify: MaybeSend + MaybeSync {
    fn notify(&self) -> BoxFuture<'static, anyhow::Result<()>>;
}

impl<F, Fut> Notify for F
where
    F: Fn() -> Fut + MaybeSend + MaybeSync,
    Fut: Future<Output = anyhow::Result<()>> + MaybeSend + 'static,
{
    fn notify(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(self())
    }
}

struct Escalation {
    after: Duration,
    to: String,
    notify: Box<dyn Notify>,
}

/// An approval that the task asks for, made by [`TaskContext::await_approval`]: set its options,
/// then await it.
#[must_use = "nothing is asked for until this is awaited"]
pub struct AwaitApproval<T> {
    ctx: TaskContext,
    key: TaskResult<Key>,
    request: TaskResult<Payload>,
    assignee: Option<String>,
    timeout: Option<Duration>,
    reminder: Option<(Duration, Box<dyn Notify>)>,
    escalations: Vec<Escalation>,
    value: PhantomData<fn() -> T>,
}

impl TaskContext {
    /// Waits for a person's approval.
    ///
    /// The wait may last for days, because the task is suspended meanwhile.
    /// [`Approvals::list`](crate::Approvals::list) lists the approval with its request.
    /// [`Approvals::decide`](crate::Approvals::decide) decides it. An approval carries a value of
    /// type `T`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use stepwell_core::{Decision, TaskContext, TaskResult};
    /// # async fn mail(_to: &str) -> anyhow::Result<()> { Ok(()) }
    /// const DAY: Duration = Duration::from_secs(24 * 3600);
    ///
    /// async fn budget(amount: u64, ctx: TaskContext) -> TaskResult<u64> {
    ///     let decision: Decision<u64> = ctx
    ///         .await_approval("budget", &amount)
    ///         .assign("manager")
    ///         .remind_every(DAY, || mail("manager"))
    ///         .escalate_after(3 * DAY, "director", || mail("director"))
    ///         .timeout(7 * DAY)
    ///         .await?;
    ///     match decision {
    ///         Decision::Approved { value, .. } => Ok(value),
    ///         Decision::Rejected { by, .. } => {
    ///             Err(anyhow::anyhow!("{by} has rejected it").into())
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TaskError::Timeout`] when nobody decides in time; [`TaskError::Payload`] when the request
    /// cannot be written, or the approval carries a value of another type; [`TaskError::Step`] when
    /// a reminder or an escalation fails; [`TaskError::Name`] when the name of an assignee is empty
    /// or longer than 512 bytes.
    pub fn await_approval<T: DeserializeOwned>(
        &self,
        name: impl Into<StepName>,
        request: &(impl Serialize + ?Sized),
    ) -> AwaitApproval<T> {
        let key = self.begin(Kind::Approval, &name.into());
        let request = match &key {
            Ok(key) => self.encode(&key.name, request),
            Err(_) => Ok(Payload::null()),
        };
        AwaitApproval {
            ctx: self.clone(),
            key,
            request,
            assignee: None,
            timeout: None,
            reminder: None,
            escalations: Vec::new(),
            value: PhantomData,
        }
    }
}

impl<T> AwaitApproval<T> {
    /// Assigns the approval to a person, for the lists of approvals; other people may still decide
    /// it.
    pub fn assign(mut self, assignee: impl Into<String>) -> Self {
        self.assignee = Some(assignee.into());
        self
    }

    /// Sets the longest time to wait. Default: no limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Repeats a reminder at this interval, as a step, while nobody has decided.
    ///
    /// Of several reminders that were missed without a worker, only one is sent. The interval is at
    /// least 1 millisecond.
    pub fn remind_every<F, Fut>(mut self, interval: Duration, remind: F) -> Self
    where
        F: Fn() -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + MaybeSend + 'static,
    {
        // An interval of zero would remind without end, and never wait.
        self.reminder = Some((interval.max(Duration::from_millis(1)), Box::new(remind)));
        self
    }

    /// Assigns the approval to another person when nobody has decided within this time, and calls
    /// `notify` as a step.
    ///
    /// The function may be called several times, for several escalations.
    pub fn escalate_after<F, Fut>(
        mut self,
        time: Duration,
        to: impl Into<String>,
        notify: F,
    ) -> Self
    where
        F: Fn() -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + MaybeSend + 'static,
    {
        self.escalations.push(Escalation { after: time, to: to.into(), notify: Box::new(notify) });
        self
    }

    async fn decided(self) -> TaskResult<Decision<T>>
    where
        T: DeserializeOwned,
    {
        let Self { ctx, key, request, assignee, timeout, reminder, mut escalations, .. } = self;
        let (key, request) = (key?, request?);
        // Names are checked before the approval is asked for, so that nothing is half done.
        assignee
            .iter()
            .chain(escalations.iter().map(|escalation| &escalation.to))
            .try_for_each(|assignee| Name::new(assignee).map(drop))?;
        let label = key.label();
        // All moments count from the time of the request, so that a replay waits for the same ones.
        ctx.ask(&key, &Asked { request: request.clone(), assignee }).await?;
        let began = ctx.now().await?;
        let event = event_of(ctx.task_id, &label, began).map_err(TaskError::from)?;
        let event = StepName::derived(event.to_string());
        let mut decision = pin!(ctx.await_event::<Decision<T>>(event, timeout));
        escalations.sort_by_key(|escalation| escalation.after);
        let mut escalations = (1_u32..).zip(escalations).peekable();
        let mut reminders = 1_u32;
        loop {
            let reminder_at = reminder
                .as_ref()
                .map(|(interval, _)| after(began, interval.saturating_mul(reminders)));
            let escalation_at =
                escalations.peek().map(|(_, escalation)| after(began, escalation.after));
            let Some(next) = [reminder_at, escalation_at].into_iter().flatten().min() else {
                return decision.await;
            };
            let name = format!("{label}:wait:{}", until(began, next).as_micros());
            let pause = ctx.sleep_until(StepName::derived(name), next);
            match select(decision.as_mut(), pause).await {
                Either::Left((decision, _)) => return decision,
                Either::Right((slept, _)) => slept?,
            }
            if escalation_at == Some(next)
                && let Some((number, Escalation { to, notify, .. })) = escalations.next()
            {
                ctx.ask(&key, &Asked { request: request.clone(), assignee: Some(to) }).await?;
                let name = StepName::derived(format!("{label}:escalate:{number}"));
                ctx.step(name, || notify.notify()).await?;
            } else if let Some((interval, remind)) = &reminder {
                let name = StepName::derived(format!("{label}:remind:{reminders}"));
                let reminded = async || {
                    remind.notify().await?;
                    Ok(ctx.run().engine.store.now())
                };
                let at: Timestamp = ctx.step(name, reminded).await?;
                // Reminders that were missed are not sent all at once.
                let due = until(began, at).as_micros() / interval.as_micros().max(1);
                reminders = reminders.max(u32::try_from(due).unwrap_or(u32::MAX)).saturating_add(1);
            }
        }
    }
}

impl<T: DeserializeOwned + 'static> IntoFuture for AwaitApproval<T> {
    type Output = TaskResult<Decision<T>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.decided())
    }
}

impl Listed for ApprovalInfo {
    type Cursor = TaskId;

    fn cursor(&self) -> TaskId {
        self.task_id
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES + self.request.as_str().len()
    }
}
