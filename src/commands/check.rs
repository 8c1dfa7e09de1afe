//! `shardwright check`: a dry run of a plan.

use crate::{cli::Check, failure::Failure, inputs::plan_and_checkpoint, output::print_json};
use serde_json::json;
use shardwright_loader::schedule::Schedule;
use shardwright_planner::{
    cost::check_fit,
    size::{Size, count},
};
use std::io::Write;

pub(crate) fn run(args: &Check, out: &mut dyn Write) -> Result<(), Failure> {
    let (plan, catalog) = plan_and_checkpoint(&args.file)?;
    check_fit(&plan)?;
    // What each rank would copy, without copying it.
    let world = plan.mesh.world_size();
    let (mut copied, mut tensors) = (0u64, 0u64);
    for rank in 0..world {
        let schedule = Schedule::new(&plan, &catalog, rank)?;
        copied = copied.saturating_add(schedule.copied_bytes());
        tensors += schedule.len() as u64;
    }
    let digest = plan.digest()?;
    if args.json {
        return print_json(
            out,
            &json!({
                "ok": true,
                "digest": digest,
                "files": catalog.files().len(),
                "tensors": catalog.tensors().len(),
                "ranks": world,
                "slices": tensors,
                "copied_bytes": copied,
            }),
        );
    }
    let files = count(catalog.files().len() as u64, "file");
    let named = count(catalog.tensors().len() as u64, "tensor");
    writeln!(out, "ok  plan      holds together, digest {}", &digest[..16])?;
    writeln!(out, "ok  files     {files} unchanged since they were planned")?;
    writeln!(out, "ok  tensors   {named}, each planned once with its dtype and shape")?;
    writeln!(out, "ok  memory    the weights of all {world} ranks fit")?;
    let all = count(tensors, "slice");
    writeln!(out, "ok  schedule  {all}, {} to copy in all", Size(copied))?;
    writeln!(out, "the plan is good")?;
    Ok(())
}
