//! The groups of the layout on the machine.

use super::{Chosen, Report};
use crate::picture::{self, Overlay};
use maud::{Markup, PreEscaped, html};
use shardwright_planner::{mesh::Mesh, plan::Plan, quote::escaped, size::count, topology::Bandwidth};

/// Most groups that are listed one by one.
const MOST_GROUPS: usize = 128;

/// The section.
pub(super) fn section(report: &Report<'_>, chosen: &Chosen<'_>) -> Markup {
    let plan = chosen.plan.as_ref().ok();
    let overlay = plan.and_then(|plan| Overlay::new(plan, report.machine).ok());
    // What the picture says of the machine is escaped where it is drawn.
    let picture = PreEscaped(picture::element(report.machine, overlay.as_ref()));
    html! {
        section aria-labelledby="machine" {
            h2 #machine { "On the machine" }
            @if let Some(plan) = plan { (in_words(plan)) }
            div.scroll.picture tabindex="0" role="region" aria-label="picture of the machine" { (picture) }
            @if let Some(plan) = plan { (groups(plan)) }
        }
    }
}

/// What the axes are.
fn in_words(plan: &Plan) -> Markup {
    let mesh = plan.mesh;
    html! {
        ul {
            li {
                (count((mesh.pp() * mesh.dp()).into(), "tensor-parallel group")) " of " (count(mesh.tp().into(), "rank"))
                @if mesh.tp() > 1 { ": they share each layer, one colour a group" }
            }
            @if mesh.pp() > 1 {
                li { (mesh.pp()) " pipeline stages: each copy's groups hand tokens on in the order of their stages" }
            }
            @if mesh.dp() > 1 { li { (mesh.dp()) " copies of the model: data parallel" } }
        }
    }
}

/// Every tensor-parallel group: stage, copy, ranks, GPUs, and what connects them.
fn groups(plan: &Plan) -> Markup {
    let mesh = plan.mesh;
    let all = (mesh.pp() * mesh.dp()) as usize;
    html! {
        details {
            summary { "The groups in words" }
            div.scroll tabindex="0" role="region" aria-label="tensor-parallel groups" {
                table {
                    thead {
                        tr {
                            th.number scope="col" { "tp group" }
                            th.number scope="col" { "copy" }
                            th.number scope="col" { "stage" }
                            th scope="col" { "layers" }
                            th scope="col" { "ranks" }
                            th scope="col" { "GPUs" }
                            th scope="col" { "all-reduce" }
                        }
                    }
                    tbody { @for group in 0..all.min(MOST_GROUPS) { (row(plan, mesh, group)) } }
                }
            }
            @if all > MOST_GROUPS { p { "… and " (all - MOST_GROUPS) " more" } }
        }
    }
}

fn row(plan: &Plan, mesh: Mesh, group: usize) -> Markup {
    let tp = mesh.tp() as usize;
    let first = u32::try_from(group * tp).unwrap_or(u32::MAX);
    let place = mesh.coordinates(first);
    let layers = plan.stages.get(place.pp as usize).filter(|layers| layers.stop > layers.start);
    let placed = plan.placement.as_ref().and_then(|placement| placement.groups.get(group));
    let gpus = match placed {
        Some(placed) => escaped(&placed.gpus),
        None => plan.ranks.get(group * tp).map_or(String::new(), |rank| escaped(&rank.gpu)),
    };
    html! {
        tr {
            th.number scope="row" { (group) }
            td.number { (place.dp) }
            td.number { (place.pp) }
            td { @if let Some(layers) = layers { (layers.start) "–" (layers.stop - 1) } }
            td { (first) @if tp > 1 { "–" (first + mesh.tp() - 1) } }
            td { bdi { (gpus) } }
            td {
                @if let Some(placed) = placed { (Bandwidth::new(placed.bytes_per_second)) " over " (placed.kind) }
                @else { "–" }
            }
        }
    }
}
