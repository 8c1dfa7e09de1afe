//! What stands in the box of a GPU.

use super::{
    overlay::Overlay,
    scene::{FAINT, Font, Look, NAME, PLAIN},
    words,
};
use shardwright_planner::topology::Topology;

/// A GPU's fill: that of its tensor-parallel group, where there is a plan.
pub(super) fn look(overlay: Option<&Overlay>, gpu: usize) -> Look {
    match overlay.map(|overlay| overlay.rank(gpu).map(|rank| overlay.group(rank))) {
        None => Look::Gpu,
        Some(None) => Look::Idle,
        Some(Some(group)) => Look::Group(group),
    }
}

/// The lines in the box of the GPU at `gpu` in [`Topology::gpus`]: its name within its node, then what runs on it.
pub(super) fn lines(machine: &Topology, overlay: Option<&Overlay>, gpu: usize) -> Vec<(Font, Vec<String>)> {
    let name = (NAME, vec![format!("gpu{}", machine.gpus()[gpu].index)]);
    let kind = machine.kind_of(gpu);
    let Some(overlay) = overlay else {
        let of_kind = (FAINT, vec![kind.kind.clone()]);
        let memory = (FAINT, vec![words::size(kind.memory_bytes)]);
        return match machine.kinds().len() {
            1 => vec![name, memory],
            _ => vec![name, of_kind, memory],
        };
    };
    let Some(rank) = overlay.rank(gpu) else { return vec![name, (FAINT, vec!["no rank".to_owned()])] };
    let group = overlay.group(rank);
    let dark = PLAIN.size;
    let small = Font { size: dark - 1.0, ..PLAIN };
    let mut lines = vec![
        name,
        (PLAIN, vec![format!("rank {rank}")]),
        (small, vec![format!("tp group {group}"), format!("group {group}")]),
    ];
    let place = overlay.stage_and_copy(group);
    if !place.is_empty() {
        let short = place.replace("stage ", "s").replace("copy ", "c");
        lines.push((small, vec![place, short]));
    }
    lines
}

/// How high a box is that takes `lines`.
pub(super) fn height(lines: &[(Font, Vec<String>)]) -> f64 {
    lines.iter().map(|(font, _)| font.size * 1.25).sum::<f64>() + 16.0
}
