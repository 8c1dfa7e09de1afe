//! The command line of shardwright: parses, calls one function of the libraries, prints.
//!
//! [`main`] is the program; [`call`] is the same for a caller in this process, such as another language, who takes what would have been
//! printed.

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

pub use commands::{Brought, LoadRequest, Loaded, engine_tensors, load_rank};

use clap::Parser;
use std::{
    io::Write,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

/// Does what the arguments of this process ask for.
pub fn main() -> ExitCode {
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

/// Why a command did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// The exit code that the program would have had: 1 the answer is no, 2 wrong usage, 3 bad input, 4 the environment failed.
    pub code: u8,
    /// What is wrong, and what to do about it.
    pub message: String,
}

/// Does what `arguments` ask for, without the program's name, and gives what the program would have printed. Commands that take a while end
/// when `interrupted` becomes true, which is for one call at a time; the first one given in a process serves for all.
///
/// # Errors
/// [`CallError`] with what the program would have said on stderr.
pub fn call(arguments: &[String], interrupted: &Arc<AtomicBool>) -> Result<String, CallError> {
    let all = std::iter::once("shardwright".to_owned()).chain(arguments.iter().cloned());
    let wrong = |error: clap::Error| CallError { code: 2, message: error.render().to_string() };
    let command = cli::Cli::try_parse_from(all).map_err(wrong)?.command;
    interrupt::Interrupts::lend(interrupted);
    let mut out = Vec::new();
    commands::run(command, &mut out).map_err(CallError::from)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}
