//! The development commands of the repository, run as `cargo xtask <command>`.

mod api;
mod book;
mod bugs;
mod cargo;
mod ci;
mod deny;
mod faces;
mod fuzz;
mod nextest;
mod package;
mod packages;
mod process;
mod report;
mod servers;
mod test;
mod tidy;
mod tool;
mod torture;
mod wasm;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The development commands of Stepwell")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test, with the servers that the tests need, then the documentation tests
    Test {
        /// Test name filters and options, handed to `cargo nextest run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run only the tests of the dashboard in a browser, and of the API against its description
    Faces,
    /// Build the book into target/book
    Book,
    /// Build stepwell-core for wasm32-unknown-unknown
    Wasm,
    /// Run the benchmark program in release mode
    Bench {
        /// Arguments for the benchmark program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Kill real processes by the thousand, and prove what really ran
    Torture(torture::Options),
    /// Play random histories in a simulated world, or show one of them
    Sim {
        /// Arguments for the simulation: --histories N, --jobs N, --seed S
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Feed what Stepwell parses with what nobody meant, by cargo-fuzz
    Fuzz(fuzz::Options),
    /// Seed bugs into a copy of the sources, and see that the tests catch each of them
    Bugs(bugs::Options),
    /// See that the sources keep the rules that the compiler does not see
    Tidy,
    /// Compare the public API with docs/api/, by a nightly compiler
    Api(api::Options),
    /// Package the crates that are published, as crates.io gets them
    Package(package::Options),
    /// Run every check that a change has to pass
    Ci {
        /// Leave out the tests, which `cargo xtask test` runs
        #[arg(long)]
        without_tests: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not returned from here: with RUST_BACKTRACE set, a backtrace would hide what failed.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Test { args } => test::run(&args, None),
        Command::Faces => {
            let mut report = report::Report::new("Faces");
            faces::run(&mut report);
            report.finish()
        }
        Command::Book => {
            let mut report = report::Report::new("Book");
            book::run(&mut report)?;
            report.finish()
        }
        Command::Wasm => wasm::run(),
        Command::Bench { args } => {
            let mut bench = cargo::cargo()?;
            bench.args(["run", "--release", "--package", "stepwell-bench", "--"]).args(&args);
            if args.iter().any(|arg| arg == "--checkpoint") {
                servers::show_moto_to(&mut bench);
            }
            process::run(&mut bench)
        }
        Command::Torture(options) => torture::run(&options),
        Command::Sim { args } => {
            let mut sim = cargo::cargo()?;
            // Nobody reads the backtraces of simulated failures, and making them takes a quarter of
            // the time.
            sim.env("RUST_BACKTRACE", "0");
            sim.args(["run", "--release", "--package", "stepwell-simulation", "--"]).args(&args);
            process::run(&mut sim)
        }
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bugs(options) => bugs::run(&options),
        Command::Tidy => tidy::run(),
        Command::Api(options) => api::run(&options),
        Command::Package(options) => package::run(&options),
        Command::Ci { without_tests } => ci::run(without_tests),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_test_are_not_ours() {
        let cli = Cli::try_parse_from(["xtask", "test", "-p", "stepwell-core", "replay"]).unwrap();
        let Command::Test { args } = cli.command else { panic!("parsed as another command") };
        assert_eq!(args, ["-p", "stepwell-core", "replay"]);
    }
}
