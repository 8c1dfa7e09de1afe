//! `shardwright plan`: who holds what, and whether it fits.

use super::layouts::{assumptions, default_workload};
use crate::{
    cli,
    failure::{Failure, Kind},
    figures,
    inputs::{absolute, config, topology},
    interrupt::Interrupts,
    output::{escaped_line, print_json, print_notes, print_table, table, write_whole},
};
use serde_json::json;
use shardwright_loader::{
    cast::Casts,
    load::{LoadError, cores},
    manifest::Manifest,
    source::{Io, open},
    tensors::Tensors,
};
use shardwright_planner::{
    adapter::{ADAPTER_CONFIG_NAME, plan_adapter},
    checkpoint::Catalog,
    cost::{MemoryUse, collectives, memory_per_rank},
    layouts::{Goal, Judged, LayoutRequest, layouts},
    mesh::Mesh,
    model::CONFIG_NAME,
    plan::{CastDtype, Groups, Plan, TensorGroup},
    planning::{PlanRequest, Sharing, build},
    quote::escaped,
    rules::{Families, UserRules},
    serving::Layout,
    size::{Size, count},
    topology::{Bandwidth, EdgeKind, Topology},
};
use std::io::Write;

/// Most ranks that are shown one by one.
const MOST_ROWS: usize = 64;

/// Most tensor-parallel groups that are named in a line.
const MOST_SETS: usize = 4;

pub(crate) fn run(args: &cli::Plan, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.checkpoint)?;
    let cast = args.dtype.map(CastDtype::from);
    if let Some(base) = &args.base {
        let base = Plan::read(base)?;
        let plan = plan_adapter(&catalog, &absolute(&args.checkpoint)?, &base, cast)?;
        return show(args, &plan, &format!("the machine of its base, {}", base.topology), None, out);
    }
    if catalog.folder().join(ADAPTER_CONFIG_NAME).is_file() && !catalog.folder().join(CONFIG_NAME).exists() {
        let message = format!("{} holds an adapter, not a model", args.checkpoint.display());
        return Err(Failure::new(Kind::Usage, message)
            .with_help("plan the model first, then the adapter with --base PLAN".to_owned()));
    }
    let config = config(&catalog)?;
    let user = args.rules.as_deref().map_or_else(|| Ok(UserRules::default()), UserRules::read)?;
    let user = user.with_replicated(&args.replicate)?;
    let families = Families::built_in()?;
    let machine = machine(args)?;
    let (tp, choice) = match args.tp {
        Some(tp) => (tp, None),
        None => {
            let request = LayoutRequest {
                catalog: &catalog,
                config: &config,
                families: &families,
                user: &user,
                topology: &machine,
                cast,
                workload: &default_workload(&config),
                assumptions: &assumptions()?,
                goal: Goal::default(),
            };
            match best_tp(args, &request) {
                Some(tp) => (tp, Some("tp not given: the first that `shardwright layouts` lists")),
                None => (all_gpus(&machine, args), Some("tp not given: all GPUs of a node")),
            }
        }
    };
    let mesh = Mesh::new(args.dp, args.pp, tp)?;
    let path = absolute(&args.checkpoint)?;
    let plan = build(&PlanRequest {
        catalog: &catalog,
        path: &path,
        config: &config,
        families: &families,
        user: &user,
        topology: &machine,
        mesh,
        sharing: &Sharing {
            uneven: args.uneven,
            weights: args.weights.clone(),
            expert_parallel: args.expert_parallel,
        },
        cast,
    })?;
    if let Some(path) = &args.fingerprint {
        write_whole(path, &fingerprints(&plan, &catalog)?)?;
    }
    show(args, &plan, machine.about(), choice, out)
}

/// The fingerprints of all tensors, as a document.
fn fingerprints(plan: &Plan, catalog: &Catalog) -> Result<String, Failure> {
    let interrupts = Interrupts::listen()?;
    let threads = cores();
    let files = open(catalog, Io::Auto, false, threads).map_err(LoadError::from)?;
    print_notes(&files.notes);
    let casts = Casts::new(plan, catalog)?;
    let tensors = Tensors::new(catalog, &casts, files.source.as_ref());
    let manifest = Manifest::of(&tensors, threads, &|| !interrupts.is_interrupted());
    let manifest = manifest.map_err(LoadError::from)?;
    let manifest = manifest.ok_or_else(|| Failure::new(Kind::Environment, "interrupted"))?;
    let text = manifest.to_json(catalog, &casts);
    text.map_err(|error| Failure::new(Kind::Environment, format!("cannot write the fingerprints: {error}")))
}

/// Writes the plan where it should go, and shows it.
fn show(
    args: &cli::Plan,
    plan: &Plan,
    machine: &str,
    choice: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let Some(output) = &args.output {
        write_whole(output, &plan.to_yaml()?)?;
    }
    let uses = memory_per_rank(plan)?;
    if args.json {
        return print_json(out, &as_json(plan, &uses)?);
    }
    print_plan(plan, machine, &uses, choice, out)?;
    match &args.output {
        Some(output) => writeln!(out, "plan written to {}", output.display())?,
        None => writeln!(out, "plan not written: give -o FILE")?,
    }
    print_answer(plan, &uses, out)
}

fn machine(args: &cli::Plan) -> Result<Topology, Failure> {
    let devices = Mesh::new(args.dp, args.pp, args.tp.unwrap_or(1))?.world_size();
    topology(&args.topology, args.nodes, devices)
}

/// The best number of ranks that share each layer, with the stages and copies that are asked for; `None` where nothing fits, or
/// what does not divide is to be dealt all the same, which layouts are not searched for.
fn best_tp(args: &cli::Plan, request: &LayoutRequest<'_>) -> Option<u32> {
    if args.uneven || !args.weights.is_empty() {
        return None;
    }
    let found = layouts(request).ok()?;
    let is_asked = |judged: &&Judged| {
        let Layout { pp, dp, expert_parallel, .. } = judged.layout;
        (pp, dp, expert_parallel) == (args.pp, args.dp, args.expert_parallel)
    };
    let mut asked = found.judged.iter().filter(is_asked).filter(|judged| judged.memory.lacks == 0);
    asked.next().map(|judged| judged.layout.tp)
}

/// All GPUs of a node work on one layer, unless its stages or copies must share the node.
fn all_gpus(machine: &Topology, args: &cli::Plan) -> u32 {
    let groups = args.pp.saturating_mul(args.dp);
    let gpus = u32::try_from(machine.gpus().len()).unwrap_or(u32::MAX);
    let node = u32::try_from(machine.gpus_per_node()).unwrap_or(u32::MAX);
    (gpus / groups).clamp(1, node)
}

fn print_plan(
    plan: &Plan,
    machine: &str,
    uses: &[MemoryUse],
    choice: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mesh = plan.mesh;
    writeln!(out, "{}", plan.model)?;
    let why = choice.map_or(String::new(), |choice| format!(" ({choice})"));
    writeln!(
        out,
        "tp {} × pp {} × dp {} = {} on {}, family {}{why}",
        mesh.tp(),
        mesh.pp(),
        mesh.dp(),
        count(u64::from(mesh.world_size()), "rank"),
        escaped(machine),
        escaped(&plan.family),
    )?;
    if let Some(placement) = &plan.placement {
        print_groups(placement, out)?;
    }
    print_cast(plan, out)?;
    writeln!(out)?;
    print_ranks(plan, uses, out)?;
    writeln!(out)?;
    let rows = collectives(plan).into_iter().map(|collective| {
        [
            collective.kind.to_owned(),
            escaped(&collective.after),
            collective.times.to_string(),
            figures::kib(collective.bytes_per_token),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        print_table(out, &table(["collective", "after", "times", "KiB/token"], 2, rows))?;
        writeln!(out)?;
    }
    for warning in &plan.warnings {
        writeln!(out, "warning: {}", escaped_line(warning))?;
    }
    if !plan.warnings.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

fn print_ranks(plan: &Plan, uses: &[MemoryUse], out: &mut dyn Write) -> Result<(), Failure> {
    let pooled = plan.ranks.iter().any(|place| place.memory_pool.is_some());
    // One unit a column, the one that tells something about the largest.
    let largest = uses.iter().map(|used| used.weights).max().unwrap_or(0);
    let (weights_head, weights): (_, fn(u64) -> String) = match largest {
        0..0x40_0000 => ("weights KiB", figures::kib),
        0x40_0000..0x1_0000_0000 => ("weights MiB", figures::mib),
        _ => ("weights GiB", figures::gib),
    };
    let rows = plan.ranks.iter().zip(uses).take(MOST_ROWS).map(|(place, used)| {
        let layers = plan.stages.get(plan.mesh.coordinates(place.rank).pp as usize);
        // Memory that is shared has no rest of one rank's own.
        let left = match pooled {
            true => "shared".to_owned(),
            false => figures::gib(place.memory_bytes.saturating_sub(used.weights)),
        };
        [
            place.rank.to_string(),
            escaped(&place.gpu),
            layers.map_or("-".to_owned(), |layers| {
                format!("{}-{}", layers.start, layers.stop.saturating_sub(1))
            }),
            used.tensors.to_string(),
            weights(used.weights),
            left,
            figures::percent(used.replicated, used.weights),
        ]
    });
    let head = ["rank", "GPU", "layers", "tensors", weights_head, "left GiB", "replicated %"];
    print_table(out, &table(head, 2, rows))?;
    if plan.ranks.len() > MOST_ROWS {
        writeln!(out, "… and {} more ranks; --json lists all", plan.ranks.len() - MOST_ROWS)?;
    }
    Ok(())
}

/// The sets of GPUs that work on one layer, those that are equally fast in one line, and what they were preferred to.
fn print_groups(placement: &Groups, out: &mut dyn Write) -> Result<(), Failure> {
    let mut speeds: Vec<((EdgeKind, u64), Vec<&str>)> = Vec::new();
    for group in &placement.groups {
        let speed = (group.kind, group.bytes_per_second);
        match speeds.iter_mut().find(|(other, _)| *other == speed) {
            Some((_, sets)) => sets.push(&group.gpus),
            None => speeds.push((speed, vec![&group.gpus])),
        }
    }
    for ((kind, bytes), sets) in speeds {
        let width = Bandwidth::new(bytes);
        writeln!(out, "tp groups {}: all-reduce at {width} over {kind}", sets_in_words(&sets))?;
    }
    let Some(second) = &placement.runner_up else { return Ok(()) };
    let width = Bandwidth::new(second.bytes_per_second);
    let chosen: Vec<&str> = placement.groups.iter().map(|group| group.gpus.as_str()).collect();
    let others: Vec<&str> =
        second.gpus.iter().map(String::as_str).filter(|set| !chosen.contains(set)).collect();
    match placement.slowest().is_some_and(|slowest| second.bytes_per_second < slowest.bytes_per_second) {
        true => writeln!(out, "runner-up {}: at {width}", sets_in_words(&others))?,
        false => writeln!(out, "runner-up {}: as fast", sets_in_words(&others))?,
    }
    Ok(())
}

/// What is cast to what, where anything is.
fn print_cast(plan: &Plan, out: &mut dyn Write) -> Result<(), Failure> {
    let cast = || plan.tensors.iter().filter(|group| group.cast.is_some());
    let Some(first) = cast().next() else { return Ok(()) };
    let tensors: u64 = cast().map(TensorGroup::count).sum();
    writeln!(out, "{} cast to {} as they are loaded", count(tensors, "tensor"), first.loaded_dtype())?;
    Ok(())
}

/// Sets of GPUs in brackets, the first few of many.
fn sets_in_words(sets: &[&str]) -> String {
    let shown: Vec<String> = sets.iter().take(MOST_SETS).map(|set| format!("{{{}}}", escaped(set))).collect();
    match sets.len().checked_sub(MOST_SETS) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(" ")),
        _ => shown.join(" "),
    }
}

fn print_answer(plan: &Plan, uses: &[MemoryUse], out: &mut dyn Write) -> Result<(), Failure> {
    let largest = plan.ranks.iter().zip(uses).rev().max_by_key(|(_, used)| used.weights);
    let Some((place, used)) = largest else { return Ok(()) };
    if place.memory_pool.is_some() {
        let all: u64 = uses.iter().map(|used| used.weights).sum();
        writeln!(out, "fits: all ranks hold {} of {} together", Size(all), Size(place.memory_bytes))?;
        return Ok(());
    }
    writeln!(
        out,
        "fits: the fullest GPU ({}, rank {}) holds {} of {}",
        escaped(&place.gpu),
        place.rank,
        Size(used.weights),
        Size(place.memory_bytes)
    )?;
    Ok(())
}

fn as_json(plan: &Plan, uses: &[MemoryUse]) -> Result<serde_json::Value, Failure> {
    let ranks: Vec<_> = plan
        .ranks
        .iter()
        .zip(uses)
        .map(|(place, used)| {
            json!({
                "rank": place.rank,
                "gpu": place.gpu,
                "stage": plan.mesh.coordinates(place.rank).pp,
                "tensors": used.tensors,
                "weight_bytes": used.weights,
                "replicated_bytes": used.replicated,
                "padding_bytes": used.padding,
                "memory_bytes": place.memory_bytes,
                "memory_pool": place.memory_pool,
            })
        })
        .collect();
    let collectives: Vec<_> = collectives(plan)
        .into_iter()
        .map(|collective| {
            json!({
                "kind": collective.kind,
                "after": collective.after,
                "times": collective.times,
                "bytes_per_token": collective.bytes_per_token,
            })
        })
        .collect();
    Ok(json!({
        "digest": plan.digest()?,
        "model": plan.model,
        "family": plan.family,
        "topology": plan.topology,
        "mesh": plan.mesh,
        "placement": plan.placement,
        "stages": plan.stages,
        "ranks": ranks,
        "collectives": collectives,
        "warnings": plan.warnings,
    }))
}
