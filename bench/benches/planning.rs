//! The steps of planning a 70B model: its headers, the plan, the document, and what one rank holds.
//!
//! The checkpoint is the skeleton that `skeleton.py` makes, with true headers over a hole, once, below `target/`.

use criterion::Criterion;
use shardwright_planner::{
    checkpoint::Catalog,
    mesh::Mesh,
    model::{CONFIG_NAME, read_config},
    planning::{PlanRequest, build},
    rules::Families,
    topology::{Topology, builtin},
};
use std::{
    error::Error,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const MODEL: &str = "llama-3.1-70b";
const TOPOLOGY: &str = "dgx-h100";
const TP: u32 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = skeleton()?;
    let catalog = Catalog::open(&folder)?;
    let model = read_config(&folder.join(CONFIG_NAME))?;
    let families = Families::built_in()?;
    let text = builtin(TOPOLOGY).ok_or("the topology is not built in")?;
    let topology = Topology::parse(text, TOPOLOGY, None, None)?;
    let request = PlanRequest {
        catalog: &catalog,
        path: &folder,
        model: &model,
        families: &families,
        topology: &topology,
        mesh: Mesh::new(1, 1, TP)?,
        uneven: false,
    };
    let plan = build(&request)?;

    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group(MODEL);
    group.bench_function("catalog", |bencher| bencher.iter(|| Catalog::open(black_box(&folder))));
    group.bench_function("plan", |bencher| bencher.iter(|| build(black_box(&request))));
    group.bench_function("to_yaml", |bencher| bencher.iter(|| black_box(&plan).to_yaml()));
    group.bench_function("slices of one rank", |bencher| {
        bencher.iter(|| black_box(&plan).rank_tensors(TP - 1));
    });
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The skeleton's folder. It is made aside and renamed, so that one that is there is whole.
fn skeleton() -> Result<PathBuf, Box<dyn Error>> {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = below.join(MODEL);
    if folder.is_dir() {
        return Ok(folder);
    }
    let aside = below.join(format!("{MODEL}.{}.part", std::process::id()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("skeleton.py");
    let status = Command::new("python3").arg("-B").arg(script).arg(MODEL).arg(&aside).status();
    let status =
        status.map_err(|error| format!("python3 makes the skeleton to plan, and cannot be run: {error}"))?;
    if !status.success() {
        return Err(format!("python3 could not make the skeleton to plan: {status}").into());
    }
    std::fs::rename(&aside, &folder)?;
    Ok(folder)
}
