//! The command line of shardwright: parses, calls one function of the libraries, prints.
#![allow(missing_docs)]

mod cli;
mod commands;
mod engines;
mod failure;
mod figures;
mod inputs;
mod interrupt;
mod output;
mod picture;
mod progress;
mod report;

use clap::Parser;
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    shardwright_loader::heap::share();
    let command = cli::Cli::parse().command;
    let mut out = std::io::stdout().lock();
    let outcome = commands::run(command, &mut out).and_then(|()| Ok(out.flush()?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when stderr is gone too.
            let _ = write!(std::io::stderr(), "{failure}");
            failure.exit_code()
        }
    }
}
