//! Pictures of machines, for people.
//!
//! In come a topology and, if wanted, the ranks of a plan ([`Overlay`]); out goes SVG, or a form for terminals. A node is taken
//! apart first ([`parts`]: what is plugged into what), then given places ([`layout`], which gives a [`scene`]), then written
//! ([`mod@svg`]). Everything is bounded, whatever the file says: large nodes and many nodes are drawn in part, and it says so. It
//! knows no tensor, and decides nothing.

mod cluster;
mod fabric;
mod gpu_box;
mod layout;
mod node;
mod overlay;
mod parts;
mod ring;
mod scene;
mod svg;
mod terminal;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use overlay::{Overlay, OverlayError};
pub(crate) use terminal::print;

use shardwright_planner::topology::Topology;

/// The picture of `machine` as an SVG file, with the ranks of a plan on its GPUs if there is one.
pub(crate) fn svg(machine: &Topology, overlay: Option<&Overlay>) -> String {
    svg::write(&layout::scene(machine, overlay), &about(machine))
}

/// The same as a part of a page.
pub(crate) fn element(machine: &Topology, overlay: Option<&Overlay>) -> String {
    svg::element(&layout::scene(machine, overlay), &about(machine))
}

fn about(machine: &Topology) -> String {
    format!("{}: {}", machine.name(), machine.about())
}
