//! `shardwright load`: every rank's slices into memory, verified.

mod crew;
mod gpus;
mod holding;
mod interrupt;
mod progress;
mod report;

use crate::{
    cli::{Load, Verify},
    failure::{Failure, Kind},
    output::{print_notes, write_whole},
};
use crew::{Company, Crew};
use interrupt::{Interrupts, Watchdog};
use shardwright_loader::{
    load::{LoadOptions, load},
    trace::Tracer,
    verify::Extent,
};
use shardwright_planner::plan::Plan;
use std::{
    io::Write,
    time::{Duration, Instant},
};

pub(crate) fn run(args: &Load, out: &mut dyn Write) -> Result<(), Failure> {
    let plan = Plan::read(&args.file.plan)?;
    let interrupts = Interrupts::listen()?;
    let options = LoadOptions {
        verify: extent(args.verify),
        threads: args.threads.map_or(0, |threads| threads as usize),
        flip_byte_of: args.flip_byte,
        interrupted: interrupts.flag(),
        tracer: if args.trace.is_some() { Tracer::on() } else { Tracer::default() },
    };
    let (crew, catalog) = Crew::muster(args, &plan, &options, &interrupts)?;
    check_flipped(args, &plan, &crew)?;
    let socket = holding::socket(args, &plan, &crew)?;
    print_notes(&crew.notes);

    let begin = Instant::now();
    let watchdog = Watchdog::start(&interrupts, crew.lifelines(), Duration::from_secs(args.patience));
    let ranks = progress::with_bar(&plan, &catalog, &crew.ranks(), |progress| {
        load(&plan, &catalog, crew.seats(), &options, progress)
    });
    let ranks = watchdog.stop(ranks);
    if let (Some(path), Some(timeline)) = (&args.trace, options.tracer.to_json()) {
        write_whole(path, &timeline.to_string())?;
    }
    let loaded = report::Loaded {
        ranks: ranks?,
        elapsed: begin.elapsed(),
        places: crew.places(),
        company: crew.company(),
    };
    loaded.print_notes();
    loaded.print(args.json, out)?;
    loaded.verdict()?;
    match socket {
        Some(socket) => holding::hold(&socket, &plan, loaded.ranks, &interrupts, out),
        None => Ok(()),
    }
}

fn extent(verify: Verify) -> Option<Extent> {
    match verify {
        Verify::Full => Some(Extent::Full),
        Verify::Sample => Some(Extent::Sample),
        Verify::Off => None,
    }
}

fn check_flipped(args: &Load, plan: &Plan, crew: &Crew) -> Result<(), Failure> {
    let Some(flipped) = args.flip_byte else { return Ok(()) };
    crew::check_rank(plan, flipped)?;
    if let Some(rank) = args.rank.filter(|&rank| rank != flipped && crew.company() == Company::Alone) {
        let message = format!("--flip-byte asks for rank {flipped}, but --rank loads rank {rank} alone");
        return Err(Failure::new(Kind::Usage, message));
    }
    Ok(())
}
