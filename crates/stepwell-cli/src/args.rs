//! The arguments of the program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use stepwell::{TaskId, TaskState, WorkerId};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Durable execution: looks at the tasks of a database, and acts on them
#[derive(Parser)]
#[command(
    name = "stepwell",
    version,
    styles = STYLES,
    after_help = "Exit status: 0 when it was done, 1 when it failed, 2 for arguments that are not \
        understood, 3 when there is no such task, worker, schedule or database, 4 when the task's \
        state does not allow it, 5 when a watched task failed or was cancelled."
)]
pub(crate) struct Cli {
    /// The database: sqlite://path/to/file.db, postgres://user:password@host/database
    #[arg(
        long,
        global = true,
        env = "DURABLE_DATABASE_URL",
        hide_env_values = true,
        default_value = stepwell::DEFAULT_DATABASE_URL,
        value_name = "URL"
    )]
    pub(crate) database_url: String,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The two-minute tour: orders that survive the death of their worker, and the dashboard to
    /// look at them
    Demo(Demo),
    /// Serve the dashboard and the HTTP API
    Serve(Serve),
    /// Tasks: list, show, watch, spawn, cancel, pause, retry, delete, move
    #[command(subcommand)]
    Tasks(Tasks),
    /// Events, which any number of tasks await
    #[command(subcommand)]
    Events(Events),
    /// Send a message to a task's mailbox
    Send {
        task_id: TaskId,
        topic: String,
        /// JSON; @file for a file's, - for that of the input [default: null]
        payload: Option<String>,
    },
    /// Approvals that tasks wait for
    #[command(subcommand)]
    Approvals(Approvals),
    /// Queues: what waits in them, their limits
    #[command(subcommand)]
    Queues(Queues),
    /// Schedules, which spawn tasks
    #[command(subcommand)]
    Schedules(Schedules),
    /// Workers of all machines
    #[command(subcommand)]
    Workers(Workers),
    /// Watch queues, workers and what runs, in the terminal
    Top(Top),
    /// Make the database's tables, or bring them up to date
    Migrate,
    /// Remove tasks that have ended
    Purge {
        /// Remove only tasks that ended longer ago than this: 12h, 30days
        #[arg(long, value_name = "TIME")]
        older_than: humantime::Duration,
        /// Remove only tasks in this state: completed, failed, cancelled
        #[arg(long, value_parser = finished_state)]
        state: Option<TaskState>,
    },
    /// Print a script that completes this program's arguments in a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
pub(crate) enum Tasks {
    /// List tasks, the newest first
    List(Filter),
    /// Show one: what it was given, what it did and when, what it waits for
    Show { task_id: TaskId },
    /// Follow one until it ends
    Watch { task_id: TaskId },
    /// Spawn one, of a type that some worker knows
    Spawn {
        task_type: String,
        /// JSON; @file for a file's, - for that of the input [default: null]
        params: Option<String>,
        /// The queue of the task [default: default]
        #[arg(long)]
        queue: Option<String>,
        /// The priority: tasks with a higher one start first
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        priority: i32,
        /// The maximum number of attempts
        #[arg(long)]
        max_attempts: Option<u32>,
        /// Only the first task of the type with this key is spawned
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        /// Tasks with the same key run one after the other
        #[arg(long, value_name = "KEY")]
        concurrency_key: Option<String>,
        /// The minimum time from now until the task starts: 10m, 2days
        #[arg(long, value_name = "TIME")]
        delay: Option<humantime::Duration>,
        /// A label, as name=value; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Cancel tasks, and with them their children
    Cancel(Ids),
    /// Let no worker claim tasks until they are resumed; one that runs goes on until it waits
    Pause(Ids),
    /// Let paused tasks go on
    Resume(Ids),
    /// Run failed or cancelled tasks again, from their journals
    Retry(Ids),
    /// Spawn tasks like these, from the start
    Retrigger(Ids),
    /// Remove tasks that have ended
    Delete(Ids),
    /// Write a task into a document, which can be imported elsewhere
    Export {
        task_id: TaskId,
        /// The file; - for the output
        #[arg(long, short, default_value = "-")]
        output: PathBuf,
    },
    /// Take in a task from a document; it goes on here
    Import {
        /// The file; - for the input
        file: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Serve {
    /// The address to listen on; others can reach anything but 127.0.0.1 and ::1, and then a token
    /// is needed
    #[arg(long, default_value = "127.0.0.1:7180", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// Only those who have this may do anything
    #[arg(long, env = "STEPWELL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// A name that browsers may call the server by, beside localhost and addresses; may be
    /// repeated
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// Let browsers send their sessions over TLS only
    #[arg(long)]
    pub(crate) secure_cookies: bool,
    /// Take the last address in X-Forwarded-For for the client's; only where everybody comes
    /// through a proxy
    #[arg(long)]
    pub(crate) behind_proxy: bool,
    /// The maximum number of connections at the same time
    #[arg(long, default_value_t = 900, value_name = "COUNT")]
    pub(crate) max_connections: usize,
    /// The maximum number of connections from one address
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    pub(crate) max_connections_per_address: usize,
}

#[derive(Args)]
pub(crate) struct Top {
    /// Print it once, and end; as it is where there is no terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// The time between two drawings
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub(crate) interval: humantime::Duration,
}

#[derive(Args)]
pub(crate) struct Demo {
    /// The folder of the database and the ledger [default: a new one, which is removed at the end]
    #[arg(long, value_name = "PATH")]
    pub(crate) folder: Option<PathBuf>,
    /// The address that the dashboard listens on
    #[arg(long, default_value = "127.0.0.1:7180", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// End when the orders are done, in place of waiting for Ctrl-C
    #[arg(long)]
    pub(crate) exit: bool,
    /// Be a worker of the tour, as it starts them itself
    #[arg(long, hide = true, requires = "folder")]
    pub(crate) worker: bool,
}

#[derive(Args)]
pub(crate) struct Ids {
    #[arg(required = true, value_name = "TASK_ID")]
    pub(crate) task_ids: Vec<TaskId>,
}

#[derive(Args)]
pub(crate) struct Filter {
    /// The state of the tasks: pending, running, suspended, compensating, completed, failed,
    /// cancelled
    #[arg(long, value_parser = state)]
    pub(crate) state: Option<TaskState>,
    /// The queue of the tasks
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// The type of the tasks
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) task_type: Option<String>,
    /// A label of the tasks, as name=value; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// The task that spawned the tasks
    #[arg(long, value_name = "TASK_ID")]
    pub(crate) parent: Option<TaskId>,
    /// The last task of the page before; all tasks of the list are older
    #[arg(long, value_name = "TASK_ID")]
    pub(crate) before: Option<TaskId>,
    /// The maximum number of tasks
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
}

#[derive(Subcommand)]
pub(crate) enum Events {
    /// Emit an event: the first of its name stands
    Emit {
        name: String,
        /// JSON; @file for a file's, - for that of the input [default: null]
        payload: Option<String>,
        /// Only for the tasks of this queue [default: for all]
        #[arg(long)]
        queue: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Approvals {
    /// List what waits for a decision
    List {
        /// The maximum number of tasks whose approvals are listed
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Approve one
    Approve {
        task_id: TaskId,
        name: String,
        /// The value of the decision: JSON; @file for a file's, - for that of the input
        /// [default: null]
        value: Option<String>,
        #[command(flatten)]
        decision: Decision,
    },
    /// Reject one
    Reject {
        task_id: TaskId,
        name: String,
        #[command(flatten)]
        decision: Decision,
    },
}

#[derive(Args)]
pub(crate) struct Decision {
    /// The name of the user who decides
    #[arg(long, env = "USER")]
    pub(crate) by: String,
    /// The reason for the decision
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Queues {
    /// List queues, with what is in them
    List,
    /// Start no more tasks of a queue
    Pause { queue: String },
    /// Start them again
    Resume { queue: String },
    /// Set a queue's limits; what is not named is not limited
    Set {
        queue: String,
        /// The maximum number of tasks that run at the same time, on all workers together
        #[arg(long, value_name = "N")]
        max_running: Option<u32>,
        /// The maximum number of tasks that run at the same time on one worker
        #[arg(long, value_name = "N")]
        max_running_per_worker: Option<u32>,
        /// The maximum number of tasks that start in a time: 100/1m
        #[arg(long, value_name = "N/TIME", value_parser = rate)]
        rate: Option<stepwell::RateLimit>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Schedules {
    /// List schedules
    List,
    /// Let one spawn no more tasks
    Pause { name: String },
    /// Let it go on
    Resume { name: String },
    /// Spawn its task now, beside its ticks
    Trigger { name: String },
    /// Remove one
    Delete { name: String },
}

#[derive(Subcommand)]
pub(crate) enum Workers {
    /// List workers
    List,
    /// Tell one to end what it runs, and to stop
    Drain { worker_id: WorkerId },
}

fn state(word: &str) -> Result<TaskState, String> {
    let words: Vec<_> = TaskState::ALL.iter().map(|state| state.as_str()).collect();
    TaskState::parse(word).ok_or_else(|| format!("a task is one of {}", words.join(", ")))
}

fn finished_state(word: &str) -> Result<TaskState, String> {
    let state = state(word).ok().filter(|state| state.is_finished());
    state.ok_or_else(|| "a task that has ended is completed, failed or cancelled".into())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is written as name=value")?;
    Ok((name.into(), value.into()))
}

fn rate(text: &str) -> Result<stepwell::RateLimit, String> {
    let (starts, per) = text.split_once('/').ok_or("a rate is written as 100/1m")?;
    let starts =
        starts.parse().map_err(|error| format!("{starts:?} is no number of starts: {error}"))?;
    let per =
        humantime::parse_duration(per).map_err(|error| format!("{per:?} is no time: {error}"))?;
    Ok(stepwell::RateLimit { starts, per })
}
