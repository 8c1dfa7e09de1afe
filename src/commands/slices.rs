//! `shardwright slices`: what a rank holds, as JSON for other tools.

use crate::{cli::Slices, failure::Failure, inputs::check_rank};
use serde::Serialize;
use shardwright_planner::{
    checkpoint::Dtype,
    partition::TensorBox,
    plan::{CastDtype, Plan},
};
use std::{collections::BTreeMap, io::Write};

#[derive(Serialize)]
struct Document {
    rank: u32,
    world_size: u32,
    tensors: BTreeMap<String, Held>,
}

/// What the rank holds of one tensor. `shape` counts the padding; `dtype` is what it is stored as, `cast` what it is loaded as
/// where that is another.
#[derive(Serialize)]
struct Held {
    dtype: Dtype,
    #[serde(skip_serializing_if = "Option::is_none")]
    cast: Option<CastDtype>,
    shape: Vec<u64>,
    boxes: Vec<TensorBox>,
    #[serde(skip_serializing_if = "is_zero")]
    pad_rows: u64,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(rows: &u64) -> bool {
    *rows == 0
}

pub(crate) fn run(args: &Slices, out: &mut dyn Write) -> Result<(), Failure> {
    let plan = Plan::read(&args.plan)?;
    check_rank(&plan, args.rank)?;
    let world_size = plan.mesh.world_size();
    let tensors = plan
        .rank_tensors(args.rank)?
        .map(|tensor| {
            let boxes = tensor.slice.boxes();
            let held = Held {
                dtype: tensor.dtype,
                cast: tensor.cast,
                shape: tensor.slice.shape.clone(),
                boxes,
                pad_rows: tensor.slice.padding,
            };
            (tensor.name, held)
        })
        .collect();
    let document = Document { rank: args.rank, world_size, tensors };
    let mut buffered = std::io::BufWriter::new(out);
    serde_json::to_writer(&mut buffered, &document)?;
    writeln!(buffered)?;
    Ok(buffered.flush()?)
}
