//! What an engine's rank holds, for a caller in this process.

use crate::{
    CallError,
    cli::PlanFile,
    failure::{Failure, Kind},
    inputs::{check_rank, plan_and_checkpoint},
    output::write_whole,
};
use serde_json::{Value, json};
use shardwright_loader::schedule::Schedule;
use shardwright_planner::engine::{EngineContent, EngineNames, EngineTensor, HeldSlice};
use std::path::Path;

/// Writes the plan of what `engine`'s ranks hold of `plan` to `adapted`, and gives the engine's tensors on `rank` as JSON: each with its
/// name, dtype and shape, and the slices that follow one another in it, `[tensor, elements]`, or the number
/// that it is. `stages` are the layers of each pipeline stage, where the engine was told how many.
///
/// # Errors
/// [`CallError`] when nobody knows what the engine makes of the plan, or the checkpoint is not the one that was planned.
pub fn engine_tensors(
    plan: &Path,
    checkpoint: Option<&Path>,
    engine: &str,
    rank: u32,
    adapted: &Path,
    stages: Option<&[u64]>,
) -> Result<String, CallError> {
    let file = PlanFile { plan: plan.to_owned(), checkpoint: checkpoint.map(Path::to_owned) };
    tensors_of(&file, engine, rank, adapted, stages).map_err(CallError::from)
}

fn tensors_of(
    file: &PlanFile,
    engine: &str,
    rank: u32,
    adapted: &Path,
    stages: Option<&[u64]>,
) -> Result<String, Failure> {
    let (plan, catalog) = plan_and_checkpoint(file)?;
    check_rank(&plan, rank)?;
    let names = EngineNames::of(engine, &plan.model.model_type)?;
    let plan = names.adapted(&plan, stages)?;
    plan.check()?;
    let schedule = Schedule::new(&plan, &catalog, rank)?;
    let held: Vec<HeldSlice<'_>> = super::held(&schedule, &catalog);
    let of_tensor = |tensor: EngineTensor| {
        let mut entry =
            json!({"name": tensor.name, "dtype": tensor.dtype.to_string(), "shape": tensor.shape});
        match tensor.content {
            EngineContent::Constant(value) => entry["value"] = json!(value),
            EngineContent::Slices(slices) => {
                let slice = |&slice: &usize| {
                    let HeldSlice { name, shape, .. } = held[slice];
                    json!([name, shape.iter().product::<u64>()])
                };
                entry["slices"] = slices.iter().map(slice).collect();
            }
        }
        entry
    };
    let tensors: Vec<Value> = names.tensors(&plan, rank, &held)?.into_iter().map(of_tensor).collect();
    write_whole(adapted, &plan.to_yaml()?)?;
    serde_json::to_string(&tensors).map_err(|error| Failure::new(Kind::Environment, error))
}
