//! The steps of planning large models: their headers, the plan, the document, and what one rank holds; beside them Python's
//! `safetensors`, which only lists the same headers.
//!
//! The checkpoints are the skeletons that `skeleton.py` makes, with true headers over holes, once, below `target/`.

use criterion::Criterion;
use shardwright_planner::{
    checkpoint::Catalog,
    layouts::{Goal, LayoutRequest, layouts},
    mesh::Mesh,
    model::{CONFIG_NAME, Config},
    planning::{PlanRequest, Sharing, build},
    rules::{Families, UserRules},
    serving::{Assumptions, Workload},
    topology::{Topology, builtin},
};
use std::{
    error::Error,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const TOPOLOGY: &str = "dgx-h100";

/// A model, on how many nodes, over how many ranks; and on how many nodes its layouts are searched.
const MODELS: [(&str, u32, u32, u32); 2] = [("llama-3.1-70b", 1, 8, 1), ("deepseek-v3", 2, 16, 16)];

/// Rounds in which ours and Python's are timed in turn.
const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (model, nodes, tp, most_nodes) in MODELS {
        bench(&mut criterion, model, (nodes, tp), most_nodes)?;
    }
    criterion.final_summary();
    Ok(())
}

fn bench(
    criterion: &mut Criterion,
    model: &str,
    (nodes, tp): (u32, u32),
    most_nodes: u32,
) -> Result<(), Box<dyn Error>> {
    let folder = skeleton(model)?;
    let catalog = Catalog::open(&folder)?;
    let config = Config::read(&folder.join(CONFIG_NAME))?;
    let families = Families::built_in()?;
    let text = builtin(TOPOLOGY).ok_or("the topology is not built in")?;
    let topology = Topology::parse(text, TOPOLOGY, Some(nodes), None)?;
    let request = PlanRequest {
        catalog: &catalog,
        path: &folder,
        config: &config,
        families: &families,
        user: &UserRules::default(),
        topology: &topology,
        mesh: Mesh::new(1, 1, tp)?,
        sharing: &Sharing::default(),
        cast: None,
    };
    let plan = build(&request)?;

    let mut group = criterion.benchmark_group(model);
    group.bench_function("catalog", |bencher| bencher.iter(|| Catalog::open(black_box(&folder))));
    group.bench_function("plan", |bencher| bencher.iter(|| build(black_box(&request))));
    group.bench_function("to_yaml", |bencher| bencher.iter(|| black_box(&plan).to_yaml()));
    group.bench_function("slices of one rank", |bencher| {
        bencher.iter(|| black_box(&plan).rank_tensors(tp - 1).map(Iterator::count));
    });
    let workload = Workload {
        context_len: 32_768,
        prompt_len: 1024,
        concurrency: 64,
        cache_bits: 16,
        utilization: 0.9,
        batched_tokens: None,
    };
    let assumptions = Assumptions::built_in()?;
    for nodes in (0..).map(|power| 1 << power).take_while(|nodes| *nodes <= most_nodes) {
        let topology = Topology::parse(text, TOPOLOGY, Some(nodes), None)?;
        let request = LayoutRequest {
            catalog: &catalog,
            config: &config,
            families: &families,
            user: &UserRules::default(),
            topology: &topology,
            cast: None,
            workload: &workload,
            assumptions: &assumptions,
            goal: Goal::Throughput,
        };
        let name = format!("layouts on {} GPUs", topology.gpus().len());
        group.bench_function(name, |bencher| bencher.iter(|| layouts(black_box(&request))));
    }
    group.finish();
    against_python(model, &folder, &request)
}

/// Times reading the headers and planning against Python listing the same headers, in turn, and prints medians and ratio.
fn against_python(model: &str, folder: &Path, request: &PlanRequest<'_>) -> Result<(), Box<dyn Error>> {
    let (mut ours, mut pythons) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let Some(python) = list_in_python(folder)? else {
            println!("{model}: python3 has no `safetensors` to compare with");
            return Ok(());
        };
        pythons.push(python);
        let begin = Instant::now();
        let catalog = Catalog::open(folder)?;
        black_box(build(&PlanRequest { catalog: &catalog, ..*request })?);
        ours.push(begin.elapsed().as_secs_f64());
    }
    let (ours, python) = (median(ours), median(pythons));
    println!(
        "{model}: headers and plan {:.1} ms, safetensors in Python lists the headers in {:.1} ms: {:.1} times as long",
        1e3 * ours,
        1e3 * python,
        python / ours
    );
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds that Python's `safetensors` takes to list the headers; `None` where it is not installed.
fn list_in_python(folder: &Path) -> Result<Option<f64>, Box<dyn Error>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("list_headers.py");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python).arg("-B").arg(script).arg(folder).output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(Some(text.split_whitespace().next().ok_or("no time was printed")?.parse()?))
}

/// The skeleton's folder. It is made aside and renamed, so that one that is there is whole.
fn skeleton(model: &str) -> Result<PathBuf, Box<dyn Error>> {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = below.join(model);
    if folder.is_dir() {
        return Ok(folder);
    }
    let aside = below.join(format!("{model}.{}.part", std::process::id()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("skeleton.py");
    let status = Command::new("python3").arg("-B").arg(script).arg(model).arg(&aside).status();
    let status =
        status.map_err(|error| format!("python3 makes the skeleton to plan, and cannot be run: {error}"))?;
    if !status.success() {
        return Err(format!("python3 could not make the skeleton to plan: {status}").into());
    }
    std::fs::rename(&aside, &folder)?;
    Ok(folder)
}
