//! `shardwright explain`: why tensors are cut as they are, and who holds what.

use crate::{
    cli::Explain,
    failure::{Failure, Kind},
    output::{escaped_line, print_json},
};
use serde_json::json;
use shardwright_planner::{
    glob::Glob,
    graph::NamePattern,
    partition::{Axis, Slice},
    plan::{Plan, TensorGroup},
    quote::{escaped, quote},
    rules::StageRule,
    size::count,
};
use std::io::Write;

pub(crate) fn run(args: &Explain, out: &mut dyn Write) -> Result<(), Failure> {
    let plan = Plan::read(&args.plan)?;
    let glob = Glob::of_names(&args.glob).map_err(|reason| Failure::new(Kind::Usage, reason))?;
    let found: Vec<(&TensorGroup, u64)> = plan
        .tensors
        .iter()
        .map(|group| (group, matching(group, &glob)))
        .filter(|(_, count)| *count > 0)
        .collect();
    if found.is_empty() {
        let message = format!("no tensor of the plan matches {}", quote(&args.glob));
        let help = "names look like model.layers.0.self_attn.q_proj.weight; * matches anything".to_owned();
        return Err(Failure::new(Kind::No, message).with_help(help));
    }
    if args.json {
        let groups = found.iter().map(|(group, _)| as_json(&plan, group)).collect::<Result<Vec<_>, _>>()?;
        return print_json(out, &json!({ "groups": groups }));
    }
    for (place, (group, count)) in found.iter().enumerate() {
        if place > 0 {
            writeln!(out)?;
        }
        print_group(&plan, group, *count, out)?;
    }
    Ok(())
}

/// How many tensors of `group` match: by their own names, or all of them by the name the group goes by.
fn matching(group: &TensorGroup, glob: &Glob) -> u64 {
    if glob.matches(&group.collapsed()) {
        return group.count();
    }
    let names = group.names.iter().flat_map(NamePattern::names);
    names.filter(|(name, _)| glob.matches(name)).count() as u64
}

fn print_group(plan: &Plan, group: &TensorGroup, matching: u64, out: &mut dyn Write) -> Result<(), Failure> {
    for pattern in &group.names {
        writeln!(out, "{}", escaped(&pattern.to_string()))?;
    }
    let all = group.count();
    let of = if matching == all { String::new() } else { format!(" ({matching} match)") };
    let cast = group.cast.map_or(String::new(), |_| format!(", loaded as {}", group.loaded_dtype()));
    writeln!(out, "  {} of {} {:?}{cast}{of}", count(all, "tensor"), group.dtype, group.shape)?;
    writeln!(out, "  {}: {}", group.role, escaped_line(&group.why))?;
    writeln!(out, "  held by {}", stages(plan, group))?;
    let slices = plan.slices_of(group)?;
    // Ranks that hold the same stand together.
    let mut shown: Vec<(Vec<String>, String)> = Vec::new();
    for (place, slice) in slices.by_rank().iter().enumerate() {
        let what = match (slice, slices.assigned()) {
            (Some(slice), Some((_, runs))) => {
                let (start, stop) = runs[place];
                let experts =
                    if stop - start == 1 { start.to_string() } else { format!("{start}-{}", stop - 1) };
                format!("{} of number {experts}", held(Some(slice)))
            }
            (slice, _) => held(slice.as_ref()),
        };
        match shown.iter_mut().find(|(_, other)| *other == what) {
            Some((ranks, _)) => ranks.push(place.to_string()),
            None => shown.push((vec![place.to_string()], what)),
        }
    }
    let axis = match slices.axis() {
        Axis::Tensor => "tp",
        Axis::Expert => "ep",
    };
    for (ranks, what) in shown {
        writeln!(out, "  {axis} rank {}: {what}", ranks.join(", "))?;
    }
    Ok(())
}

fn stages(plan: &Plan, group: &TensorGroup) -> &'static str {
    match group.stage {
        _ if plan.mesh.pp() == 1 => "the only pipeline stage",
        StageRule::Layer => "the pipeline stage of its layer",
        StageRule::First => "the first pipeline stage",
        StageRule::Last => "the last pipeline stage",
        StageRule::FirstAndLast => "the first and the last pipeline stage",
        StageRule::Every => "every pipeline stage",
    }
}

fn held(slice: Option<&Slice>) -> String {
    let Some(slice) = slice else { return "nothing".to_owned() };
    let boxes: Vec<String> = slice
        .boxes()
        .iter()
        .map(|region| {
            let sides = region.start.iter().zip(&region.stop).map(|(start, stop)| format!("{start}..{stop}"));
            format!("[{}]", sides.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let padding = match slice.padding {
        0 => String::new(),
        rows => format!(" and {} of zeros", count(rows, "row")),
    };
    format!("{}{padding}", boxes.join(" "))
}

fn as_json(plan: &Plan, group: &TensorGroup) -> Result<serde_json::Value, Failure> {
    let slices = plan.slices_of(group)?;
    let of_ranks: Vec<_> = slices
        .by_rank()
        .iter()
        .map(|slice| {
            slice
                .as_ref()
                .map(|slice| json!({"shape": slice.shape, "boxes": slice.boxes(), "pad_rows": slice.padding}))
        })
        .collect();
    let mut facts = json!({
        "names": group.names,
        "count": group.count(),
        "dtype": group.dtype,
        "shape": group.shape,
        "role": group.role,
        "stage": group.stage,
        "why": group.why,
        "partition": group.partition,
        (match slices.axis() {
            Axis::Tensor => "tp_ranks",
            Axis::Expert => "ep_ranks",
        }): of_ranks,
    });
    if let Some(cast) = group.cast {
        facts["cast"] = json!(cast);
    }
    Ok(facts)
}
