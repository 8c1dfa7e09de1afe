//! `load --hold`: the weights stay, for other processes of this host.

use super::crew::{Company, Crew};
use crate::{
    cli::Load,
    failure::{Failure, Kind},
    interrupt::Interrupts,
    output::print_notes,
};
use shardwright_loader::{
    device::cuda::Driver,
    hold::{self, Document, Event, Facts},
    load::LoadedRank,
};
use shardwright_planner::plan::Plan;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Where the weights are to be held, if they are: checked before anything is loaded.
pub(super) fn socket(args: &Load, plan: &Plan, crew: &Crew) -> Result<Option<PathBuf>, Failure> {
    let Some(given) = &args.hold else { return Ok(None) };
    if crew.places().iter().any(|place| place == "host") {
        let failure =
            Failure::new(Kind::Usage, "--hold needs GPUs: it hands their memory to other processes");
        return Err(failure.with_help("load with --device cuda, or without --hold".to_owned()));
    }
    let socket = match given {
        Some(path) => path.clone(),
        None => {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            hold::default_socket(runtime.as_deref(), hold::uid(), &plan.digest()?)?
        }
    };
    // Each process of a job holds its rank at a socket of its own.
    let socket = match (crew.company(), crew.ranks().as_slice()) {
        (Company::Processes | Company::Alone, [rank]) => of_rank(&socket, *rank),
        _ => socket,
    };
    hold::check_free(&socket)?;
    Ok(Some(socket))
}

/// `name-rank3.sock` of `name.sock`.
fn of_rank(socket: &Path, rank: u32) -> PathBuf {
    let mut name = socket.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-rank{rank}"));
    let mut path = socket.with_file_name(name);
    if let Some(extension) = socket.extension() {
        path.set_extension(extension);
    }
    path
}

/// Holds the weights until somebody asks to stop.
pub(super) fn hold(
    socket: &Path,
    plan: &Plan,
    ranks: Vec<LoadedRank>,
    interrupts: &Interrupts,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let gpus =
        Driver::open().and_then(Driver::gpus).map_err(shardwright_loader::device::DeviceError::from)?;
    let facts = Facts {
        plan: plan.digest()?,
        checkpoint: plan.checkpoint.path.display().to_string(),
        gpu_names: gpus.into_iter().map(|gpu| (gpu.uuid, gpu.name)).collect(),
    };
    let document = Document::of(&ranks, &facts)?;
    let mut printed = Ok(());
    hold::serve(socket, &document, &interrupts.flag(), &mut |event| match event {
        Event::Held => printed = announce(socket, out),
        event => print_notes(&[event]),
    })?;
    printed?;
    // The weights are there until nobody can attach any more.
    drop(ranks);
    Ok(())
}

/// The answer's last line: from here on nothing happens until somebody attaches or interrupts.
fn announce(socket: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "held at {}; `shardwright attach` shows it, an interrupt ends it", socket.display())?;
    Ok(out.flush()?)
}
