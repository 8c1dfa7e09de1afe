//! `shardwright load`: every rank's slices into memory, verified.

use crate::{
    cli::{DeviceChoice, Load, Verify},
    failure::{Failure, Kind},
    figures,
    inputs::plan_and_checkpoint,
    output::{print_json, print_table, table},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use shardwright_loader::{
    device::HostDevice,
    load::{LoadOptions, LoadedRank, Progress, load_all, load_one},
    schedule::Schedule,
    verify::Mismatch,
};
use shardwright_planner::{
    checkpoint::Catalog,
    plan::Plan,
    quote::quote,
    size::{Size, count},
};
use std::{
    io::{IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long a rank waits for the others.
const PATIENCE: Duration = Duration::from_secs(600);

/// Most wrong tensors that are named.
const MOST_NAMED: usize = 20;

pub(crate) fn run(args: &Load, out: &mut dyn Write) -> Result<(), Failure> {
    if args.device == DeviceChoice::Cuda {
        let failure =
            Failure::new(Kind::Environment, "this version of shardwright cannot load into GPUs yet");
        return Err(failure.with_help("--device host loads into this host's memory".to_owned()));
    }
    let (plan, catalog) = plan_and_checkpoint(&args.file)?;
    let world = plan.mesh.world_size();
    if let Some(rank) = args.rank.into_iter().chain(args.flip_byte).find(|&rank| rank >= world) {
        let message = format!("rank {rank} does not exist: the plan has ranks 0 to {}", world - 1);
        return Err(Failure::new(Kind::Usage, message));
    }
    if let (Some(loaded), Some(flipped)) = (args.rank, args.flip_byte)
        && loaded != flipped
    {
        let message = format!("--flip-byte asks for rank {flipped}, but --rank loads rank {loaded} alone");
        return Err(Failure::new(Kind::Usage, message));
    }
    let options =
        LoadOptions { verify: args.verify == Verify::Full, patience: PATIENCE, flip_byte_of: args.flip_byte };
    let begin = Instant::now();
    let ranks = with_bar(&plan, &catalog, args.rank, |progress| match args.rank {
        Some(rank) => load_one(&plan, &catalog, rank, &HostDevice, &options, progress).map(|rank| vec![rank]),
        None => load_all(&plan, &catalog, &HostDevice, &options, progress),
    })?;
    let elapsed = begin.elapsed();
    if args.json {
        print_json(out, &as_json(&ranks, elapsed))?;
    } else {
        print_ranks(&ranks, elapsed, out)?;
    }
    match ranks.first().and_then(|rank| rank.verified.as_ref()) {
        Some(verified) if !verified.mismatches.is_empty() => Err(does_not_verify(&verified.mismatches)),
        _ => Ok(()),
    }
}

/// Runs `load` while a bar on the terminal shows how far it is.
fn with_bar<T>(
    plan: &Plan,
    catalog: &Catalog,
    rank: Option<u32>,
    load: impl FnOnce(&Progress) -> Result<T, shardwright_loader::load::LoadError>,
) -> Result<T, Failure> {
    let progress = Progress::default();
    if !std::io::stderr().is_terminal() {
        return Ok(load(&progress)?);
    }
    let ranks = rank.map_or(0..plan.mesh.world_size(), |rank| rank..rank + 1);
    let mut total = 0;
    for rank in ranks {
        total += Schedule::new(plan, catalog, rank)?.copied_bytes();
    }
    let bar = ProgressBar::new(total);
    let style = "loading {bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let done = AtomicBool::new(false);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bar.set_position(progress.bytes());
                if progress.bytes() >= total {
                    bar.set_message("verifying");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let loaded = load(&progress);
        done.store(true, Ordering::Relaxed);
        loaded
    });
    bar.finish_and_clear();
    Ok(loaded?)
}

fn print_ranks(ranks: &[LoadedRank], elapsed: Duration, out: &mut dyn Write) -> Result<(), Failure> {
    let rows = ranks.iter().map(|rank| {
        let figures = rank.figures;
        let verified = match &rank.verified {
            None => "off".to_owned(),
            Some(verified) if verified.mismatches.iter().any(|wrong| wrong.ranks.contains(&rank.rank)) => {
                "WRONG".to_owned()
            }
            Some(_) => "yes".to_owned(),
        };
        [
            rank.rank.to_string(),
            rank.tensors.len().to_string(),
            figures.bytes.to_string(),
            format!("{:.2}", figures.load.as_secs_f64()),
            format!("{:.2}", figures::gb_per_second(figures.bytes, figures.load)),
            format!("{:.2}", figures.verify.as_secs_f64()),
            verified,
        ]
    });
    let head = ["rank", "tensors", "bytes", "load s", "GB/s", "verify s", "verified"];
    print_table(out, &table(head, 0, rows))?;

    let bytes: u64 = ranks.iter().map(|rank| rank.figures.bytes).sum();
    let load = ranks.iter().map(|rank| rank.figures.load).max().unwrap_or_default();
    writeln!(
        out,
        "\nloaded {} on {} into host memory in {:.2} s, {:.2} GB/s; {:.2} s in all",
        Size(bytes),
        count(ranks.len() as u64, "rank"),
        load.as_secs_f64(),
        figures::gb_per_second(bytes, load),
        elapsed.as_secs_f64(),
    )?;
    let Some(verified) = ranks.first().and_then(|rank| rank.verified.as_ref()) else {
        writeln!(out, "not verified: --verify off")?;
        return Ok(());
    };
    if verified.mismatches.is_empty() {
        let how = if ranks.len() > 1 { "summed over the ranks" } else { "of this rank's boxes" };
        writeln!(
            out,
            "verified: the fingerprints {how} are those of the files, for all {}",
            count(verified.tensors, "tensor")
        )?;
    }
    Ok(())
}

fn does_not_verify(mismatches: &[Mismatch]) -> Failure {
    let mut message = format!(
        "{} not what the files say",
        match mismatches.len() {
            1 => "1 tensor is".to_owned(),
            many => format!("{many} tensors are"),
        }
    );
    for wrong in mismatches.iter().take(MOST_NAMED) {
        let ranks: Vec<String> = wrong.ranks.iter().map(u32::to_string).collect();
        let place = match ranks.len() {
            0 => "the boxes of all ranks do not make it up".to_owned(),
            1 => format!("wrong on rank {}", ranks[0]),
            _ => format!("wrong on ranks {}", ranks.join(", ")),
        };
        let sums = if wrong.expected == wrong.found {
            "the ranks that answer for it are right, a copy is not".to_owned()
        } else {
            format!("expected {}, found {}", wrong.expected, wrong.found)
        };
        message.push_str(&format!("\n{}: {place}; {sums}", quote(&wrong.tensor)));
    }
    if mismatches.len() > MOST_NAMED {
        message.push_str(&format!("\n… and {} more", mismatches.len() - MOST_NAMED));
    }
    let help = "load again; where it stays wrong, suspect the memory of the ranks named";
    Failure::new(Kind::No, message).with_help(help.to_owned())
}

fn as_json(ranks: &[LoadedRank], elapsed: Duration) -> serde_json::Value {
    let mismatches = ranks.first().and_then(|rank| rank.verified.as_ref()).map(|verified| {
        let list = verified.mismatches.iter().map(|wrong| {
            json!({
                "tensor": wrong.tensor,
                "ranks": wrong.ranks,
                "expected": wrong.expected.to_string(),
                "found": wrong.found.to_string(),
            })
        });
        list.collect::<Vec<_>>()
    });
    let ranks: Vec<_> = ranks
        .iter()
        .map(|rank| {
            json!({
                "rank": rank.rank,
                "tensors": rank.tensors.len(),
                "bytes": rank.figures.bytes,
                "memory_bytes": rank.memory.len(),
                "load_seconds": rank.figures.load.as_secs_f64(),
                "verify_seconds": rank.figures.verify.as_secs_f64(),
            })
        })
        .collect();
    json!({
        "ranks": ranks,
        "seconds": elapsed.as_secs_f64(),
        "verified": mismatches.as_ref().map(Vec::is_empty),
        "mismatches": mismatches,
    })
}
