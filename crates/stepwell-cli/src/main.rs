//! The `stepwell` program: looks at the tasks of a database, and acts on them.

#![forbid(unsafe_code)]

mod approvals;
mod args;
mod connect;
mod demo;
mod events;
mod exit;
mod input;
mod purge;
mod queues;
mod schedules;
mod screen;
mod serve;
mod tasks;
mod timeline;
mod top;
mod watch;
mod workers;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command};
use crate::screen::Screen;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new(cli.json);
    match run(cli, &screen).await {
        Ok(code) => code,
        // The reader of the output has closed it, which is no error.
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            screen.error(&error);
            exit::code(&error)
        }
    }
}

async fn run(cli: Cli, screen: &Screen) -> Result<ExitCode> {
    let url = &cli.database_url;
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stepwell", &mut script);
            screen.text(&String::from_utf8_lossy(&script))?;
        }
        Command::Demo(options) => return demo::run(options, screen).await,
        Command::Serve(options) => serve::run(url, options, screen).await?,
        Command::Top(options) => top::run(&connect::open(url).await?, options, screen).await?,
        Command::Migrate => {
            connect::create(url).await?;
            screen.done(&format!("{url} is there, with the tables of this version"))?;
        }
        Command::Tasks(command) => {
            return tasks::run(&connect::open(url).await?, command, screen).await;
        }
        Command::Events(command) => {
            events::run(&connect::open(url).await?, command, screen).await?;
        }
        Command::Send { task_id, topic, payload } => {
            let payload = input::json(payload.as_deref())?;
            connect::open(url).await?.send(task_id, &topic, &payload).await?;
            screen.done(&format!("sent {topic} to {task_id}"))?;
        }
        Command::Approvals(command) => {
            approvals::run(&connect::open(url).await?, command, screen).await?;
        }
        Command::Queues(command) => {
            queues::run(&connect::open(url).await?, command, screen).await?;
        }
        Command::Schedules(command) => {
            schedules::run(&connect::open(url).await?, command, screen).await?;
        }
        Command::Workers(command) => {
            workers::run(&connect::open(url).await?, command, screen).await?;
        }
        Command::Purge { older_than, state } => {
            purge::run(&connect::open(url).await?, older_than.into(), state, screen).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
