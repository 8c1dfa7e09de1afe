//! `layouts --html`: gathers what the page tells of the first layout.

use super::{Found, calibrate::name, engines};
use crate::{
    cli,
    failure::{Failure, Kind},
    inputs::absolute,
    report::{self, Chosen, GpuMemory, Report},
};
use shardwright_planner::{
    calibration::PointErrors,
    layouts::{Judged, LayoutRequest, Prices, facts},
    mesh::Mesh,
    plan::{LayerRange, Plan, RankPlace},
    planning::{PlanRequest, Sharing, build},
    quote::quote,
    serving::{Deployment, Machine, MemoryBudget},
    size::count,
    topology::GpuKind,
};
use std::collections::BTreeMap;

/// The page about the layouts of one machine.
pub(super) fn page(
    args: &cli::Layouts,
    found: &Found,
    request: &LayoutRequest<'_>,
    prices: &Prices,
    errors: &[PointErrors],
) -> Result<String, Failure> {
    let first = found.layouts.judged.first();
    let chosen = first.map(|judged| chosen(args, found, judged, request)).transpose()?;
    let checkpoint = args.checkpoint.file_name().unwrap_or(args.checkpoint.as_os_str());
    let explained = request.assumptions.explained();
    Ok(report::page(&Report {
        checkpoint: &checkpoint.to_string_lossy(),
        machine: &found.machine,
        layouts: &found.layouts,
        prices,
        workload: request.workload,
        cast: request.cast,
        goal: request.goal,
        chosen,
        explained: explained.map_err(|error| Failure::new(Kind::Environment, error))?,
        assumed: assumed(args, errors),
    }))
}

fn chosen<'a>(
    args: &cli::Layouts,
    found: &Found,
    judged: &'a Judged,
    request: &LayoutRequest<'_>,
) -> Result<Chosen<'a>, Failure> {
    let layout = judged.layout;
    let mesh = Mesh::new(layout.dp, layout.pp, layout.tp)?;
    let plan = build(&PlanRequest {
        catalog: request.catalog,
        path: &absolute(&args.checkpoint)?,
        config: request.config,
        families: request.families,
        user: request.user,
        topology: request.topology,
        mesh,
        sharing: &Sharing { uneven: false, weights: Vec::new(), expert_parallel: layout.expert_parallel },
        cast: request.cast,
    });
    // A layout that does not fit is judged all the same, and the page says what it lacks.
    let plan = plan.map_err(|error| error.to_string());
    let memory = memory(judged, mesh, plan.as_ref().ok(), request)?;
    let commands = match found.best() {
        Some(best) => Vec::from(engines(args, found, best, request.workload)),
        None => Vec::new(),
    };
    Ok(Chosen { judged, memory, plan, commands })
}

/// The memory of each kind of GPU in each stage; neighbouring stages that are alike are one.
fn memory(
    judged: &Judged,
    mesh: Mesh,
    plan: Option<&Plan>,
    request: &LayoutRequest<'_>,
) -> Result<Vec<GpuMemory>, Failure> {
    let LayoutRequest { topology, workload, assumptions, .. } = *request;
    let layout = judged.layout;
    let found = facts(request, mesh, layout.expert_parallel, workload.context_len)?;
    let Some((model, machine)) = found else { return Ok(Vec::new()) };
    let mut kinds: BTreeMap<usize, Vec<MemoryBudget>> = BTreeMap::new();
    for (number, kind) in topology.kinds().iter().enumerate() {
        let machine = Machine { memory_bytes: memory_of(kind, &machine, request), ..machine.clone() };
        let served = Deployment { model: model.clone(), layout, machine, workload: workload.clone() };
        kinds.insert(number, served.budgets(assumptions));
    }
    let mut all: Vec<GpuMemory> = Vec::new();
    for stage in 0..layout.pp as usize {
        let layers = plan.and_then(|plan| plan.stages.get(stage).copied());
        for (&number, budgets) in &kinds {
            let kind = &topology.kinds()[number].kind;
            let on_it = plan.map(|plan| {
                let of_stage = |rank: &&RankPlace| {
                    mesh.coordinates(rank.rank).pp as usize == stage && rank.kind == *kind
                };
                plan.ranks.iter().filter(of_stage).count()
            });
            let Some(budget) = budgets.get(stage).copied().filter(|_| on_it != Some(0)) else { continue };
            let gpus = on_it.unwrap_or((layout.tp * layout.dp) as usize);
            let before = all.iter_mut().rev().find(|before| {
                before.kind == *kind && before.stages.1 + 1 == stage && alike(&before.budget, &budget)
            });
            match before {
                Some(before) => {
                    before.stages.1 = stage;
                    before.gpus += gpus;
                    before.layers = before
                        .layers
                        .zip(layers)
                        .map(|(first, last)| LayerRange { stop: last.stop, ..first });
                }
                None => {
                    all.push(GpuMemory { stages: (stage, stage), layers, kind: kind.clone(), gpus, budget });
                }
            }
        }
    }
    Ok(all)
}

/// What a GPU of a kind has: the weakest kind, which stands for all in the machine, has what that says.
fn memory_of(kind: &GpuKind, machine: &Machine, request: &LayoutRequest<'_>) -> u64 {
    match kind.memory_bytes == request.topology.least_memory_bytes() {
        true => machine.memory_bytes,
        false => kind.memory_bytes,
    }
}

/// Whether two stages have the same memory.
fn alike(a: &MemoryBudget, b: &MemoryBudget) -> bool {
    MemoryBudget { stage: b.stage, ..*a } == *b
}

/// Where what is assumed comes from.
fn assumed(args: &cli::Layouts, errors: &[PointErrors]) -> String {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let fitted = errors.iter().map(|errors| {
        format!(
            "; fitted to {} of {}: half of them were less than {} % off before and {} % after",
            count(errors.points as u64, "point"),
            name(errors.kind),
            percent(errors.before),
            percent(errors.after)
        )
    });
    let from = match &args.assumptions {
        Some(path) => format!("From {}", quote(&path.to_string_lossy())),
        None => "Those that come with shardwright".to_owned(),
    };
    from + &fitted.collect::<String>()
}
