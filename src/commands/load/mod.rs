//! `shardwright load`: every rank's slices into memory, verified.

mod call;
mod crew;
mod gpus;
mod holding;
mod report;

use crate::{
    cli::{Load, Verify},
    failure::{Failure, Kind},
    inputs::{check_rank, plan_of},
    interrupt::{Interrupts, Watchdog},
    output::{print_notes, write_whole},
    progress,
};
pub use call::{Brought, LoadRequest, Loaded, load_rank};
use crew::{Company, Crew};
use shardwright_loader::{
    load::{LoadOptions, OnReady, load},
    trace::Tracer,
    verify::Extent,
};
use shardwright_planner::plan::Plan;
use std::{
    io::Write,
    time::{Duration, Instant},
};

pub(crate) fn run(args: &Load, out: &mut dyn Write) -> Result<(), Failure> {
    let (plan, exported) = plan_of(&args.file)?;
    let interrupts = Interrupts::listen()?;
    let mut options = LoadOptions {
        verify: extent(args.verify),
        manifest: None,
        threads: 0,
        flip_byte_of: args.flip_byte,
        interrupted: interrupts.flag(),
        on_ready: OnReady::default(),
        tracer: if args.trace.is_some() { Tracer::on() } else { Tracer::default() },
    };
    // A driver that hangs does so from the first call on.
    let watchdog = Watchdog::start(&interrupts, Duration::from_secs(args.patience))?;
    let mustered = Crew::muster(args, (&plan, exported), &Brought::default(), &mut options, &interrupts)
        .and_then(|crew| {
            check_flipped(args, &plan, &crew)?;
            let socket = holding::socket(args, &plan, &crew)?;
            Ok((crew, socket))
        });
    let (crew, socket) = match mustered {
        Ok(mustered) => mustered,
        Err(failure) => return watchdog.stop(Err(failure)),
    };
    print_notes(&crew.notes);

    let begin = Instant::now();
    watchdog.watch(crew.lifelines());
    let ranks = progress::with_bar("loading", &plan, &crew.catalog, &crew.ranks(), |progress| {
        load(&plan, &crew.catalog, crew.files.source.as_ref(), crew.seats(), &options, progress)
    });
    let elapsed = begin.elapsed();
    // Under the watchdog's eyes: a pipe may have nobody who reads it.
    if let (Some(path), Some(timeline)) = (&args.trace, options.tracer.to_json())
        && let Err(failure) = write_whole(path, &timeline.to_string())
    {
        // What was loaded is worth more than its timeline.
        print_notes(&[failure.message]);
    }
    let loaded = report::Loaded {
        ranks: watchdog.stop(ranks)?,
        elapsed,
        places: crew.places(),
        company: crew.company(),
        how: crew.files.how.clone(),
        by_manifest: args.manifest.is_some(),
    };
    loaded.print_notes();
    let printed = loaded.print(args.json, out);
    // Whoever reads no longer what is printed is to have the verdict all the same.
    loaded.verdict()?;
    printed?;
    match socket {
        Some(socket) => holding::hold(&socket, &plan, loaded.ranks, &interrupts, out),
        None => Ok(()),
    }
}

/// What is verified.
pub(crate) fn extent(verify: Verify) -> Option<Extent> {
    match verify {
        Verify::Full => Some(Extent::Full),
        Verify::Sample => Some(Extent::Sample),
        Verify::Off => None,
    }
}

fn check_flipped(args: &Load, plan: &Plan, crew: &Crew) -> Result<(), Failure> {
    let Some(flipped) = args.flip_byte else { return Ok(()) };
    check_rank(plan, flipped)?;
    if let Some(rank) = args.rank.filter(|&rank| rank != flipped && crew.company() == Company::Alone) {
        let message = format!("--flip-byte asks for rank {flipped}, but --rank loads rank {rank} alone");
        return Err(Failure::new(Kind::Usage, message));
    }
    Ok(())
}
