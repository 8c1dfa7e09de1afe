//! One file for each subcommand. Each takes its arguments and a place to print to.

mod attach;
mod check;
mod demo;
mod explain;
mod export;
mod inspect;
mod layouts;
mod load;
mod placement;
mod plan;
mod slices;
mod topology;
mod topology_detect;
mod topology_import;

pub use export::engine_tensors;
pub use load::{Brought, LoadRequest, Loaded, load_rank};

use crate::{cli::Command, failure::Failure};
use std::io::Write;

/// Carries out `command`, printing to `out`.
pub(crate) fn run(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Topology(args) => topology::run(args, out),
        Command::Layouts(args) => layouts::run(&args, out),
        Command::Plan(args) => plan::run(&args, out),
        Command::Check(args) => check::run(&args, out),
        Command::Explain(args) => explain::run(&args, out),
        Command::Placement(args) => placement::run(&args, out),
        Command::Slices(args) => slices::run(&args, out),
        Command::Load(args) => load::run(&args, out),
        Command::Export(args) => export::run(&args, out),
        Command::Attach(args) => attach::run(&args, out),
        Command::Demo(args) => demo::run(&args, out),
    }
}
