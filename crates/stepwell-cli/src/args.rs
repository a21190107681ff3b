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
    after_help = "Exit status: 0 when it was done, 1 when it failed, 2 for arguments that are not understood, 3 when there is \
        no such task, worker, schedule or database, 4 when the task's state does not allow it, 5 when a watched task failed or \
        was cancelled."
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
        /// Those that ended longer ago: 12h, 30days
        #[arg(long, value_name = "TIME")]
        older_than: humantime::Duration,
        /// Only those that are: completed, failed, cancelled
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
        /// Its queue [default: default]
        #[arg(long)]
        queue: Option<String>,
        /// Higher ones come first
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        priority: i32,
        /// How many attempts it has
        #[arg(long)]
        max_attempts: Option<u32>,
        /// Only the first task of the type with this key is spawned
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        /// Tasks with the same key run one after the other
        #[arg(long, value_name = "KEY")]
        concurrency_key: Option<String>,
        /// It starts no earlier than this long from now: 10m, 2days
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
    /// Where to listen; others can reach anything but 127.0.0.1 and ::1, and then a token is
    /// needed
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
    /// How many connections there may be at the same time
    #[arg(long, default_value_t = 900, value_name = "COUNT")]
    pub(crate) max_connections: usize,
    /// How many of them may come from one address
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    pub(crate) max_connections_per_address: usize,
}

#[derive(Args)]
pub(crate) struct Top {
    /// Print it once, and end; as it is where there is no terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// How often it is drawn
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub(crate) interval: humantime::Duration,
}

#[derive(Args)]
pub(crate) struct Demo {
    /// The folder of the database and the ledger [default: a new one, which is removed at the end]
    #[arg(long, value_name = "PATH")]
    pub(crate) folder: Option<PathBuf>,
    /// Where the dashboard listens
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
    /// Those that are: pending, running, suspended, compensating, completed, failed, cancelled
    #[arg(long, value_parser = state)]
    pub(crate) state: Option<TaskState>,
    /// Those of this queue
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// Those of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) task_type: Option<String>,
    /// Those with this label, as name=value; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Those that this task spawned
    #[arg(long, value_name = "TASK_ID")]
    pub(crate) parent: Option<TaskId>,
    /// Those that are older than this task: the last one of the page before
    #[arg(long, value_name = "TASK_ID")]
    pub(crate) before: Option<TaskId>,
    /// How many
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
        /// How many tasks' approvals
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Approve one
    Approve {
        task_id: TaskId,
        name: String,
        /// What is decided in particular: JSON; @file for a file's, - for that of the input
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
    /// Who decides
    #[arg(long, env = "USER")]
    pub(crate) by: String,
    /// Why
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
        /// How many tasks run at the same time, on all workers together
        #[arg(long, value_name = "N")]
        max_running: Option<u32>,
        /// How many tasks run at the same time on one worker
        #[arg(long, value_name = "N")]
        max_running_per_worker: Option<u32>,
        /// How many start in a time: 100/1m
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
