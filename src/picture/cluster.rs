//! Several nodes: side by side where they are few, else as small tiles. What several nodes share stands above them.

use super::{
    fabric::line_width,
    gpu_box,
    overlay::Overlay,
    parts::{Fabric, Parts, Shape},
    scene::{Anchor, FAINT, Font, Look, NAME, ON_SOLID, Rect, Scene, TINY},
    words,
};
use shardwright_planner::{
    size::count,
    topology::{EdgeKind, HubKind, Topology, VertexKind},
};

const GAP: f64 = 12.0;
const BAR: f64 = 26.0;
/// Most nodes that are drawn.
const MOST_NODES: usize = 64;
/// Most GPUs of all tiles together; beyond it fewer nodes are drawn.
const MOST_GPUS: usize = 1024;

/// How nodes are drawn.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    across: usize,
    gpu: (f64, f64),
    /// Whether there is room for words beside numbers.
    has_words: bool,
}

impl Tile {
    /// With names, for up to four nodes, or for one that is too large to be drawn in full.
    pub(super) fn large(parts: &Parts, overlay: Option<&Overlay>) -> Self {
        let across = if parts.gpus <= 32 { parts.gpus.min(4) } else { 16 };
        let lines = if overlay.is_some() { 62.0 } else { 34.0 };
        Self { across, gpu: (66.0, lines), has_words: true }
    }

    /// With numbers only.
    pub(super) fn small(parts: &Parts) -> Self {
        let across = if parts.gpus <= 16 { parts.gpus.min(4) } else { 16 };
        Self { across, gpu: (32.0, 18.0), has_words: false }
    }

    fn gap(self) -> f64 {
        if self.has_words { 6.0 } else { 3.0 }
    }

    fn width(self) -> f64 {
        let least = if self.has_words { 200.0 } else { 76.0 };
        (self.across as f64 * (self.gpu.0 + self.gap()) - self.gap()).max(least) + 2.0 * GAP
    }

    fn height(self, parts: &Parts) -> f64 {
        let rows = parts.gpus.div_ceil(self.across) as f64;
        let grid = rows * (self.gpu.1 + self.gap()) - self.gap();
        let bars = within(parts).count() as f64;
        match self.has_words {
            true => 30.0 + bars * (BAR + 8.0) + grid + 24.0 + GAP,
            false => 22.0 + bars * 7.0 + grid + GAP,
        }
    }

    /// One node with its upper left corner at `x`, `y`.
    fn draw(
        self,
        scene: &mut Scene,
        machine: &Topology,
        parts: &Parts,
        overlay: Option<&Overlay>,
        node: usize,
        (x, y): (f64, f64),
    ) {
        let frame = Rect { x, y, w: self.width(), h: self.height(parts) };
        scene.rect(frame, Look::Frame);
        let inner = frame.w - 2.0 * GAP;
        let name = if machine.nodes() > 1 { format!("node{node}") } else { machine.name().to_owned() };
        let font = if self.has_words { NAME } else { Font { bold: true, ..FAINT } };
        scene.text(x + GAP, y + font.size + 6.0, &font.fit(&[name], inner), font, Anchor::Start);
        let mut top = y + if self.has_words { 30.0 } else { 22.0 };
        for fabric in within(parts) {
            let kind = words::fabric_kind(fabric);
            let look = match &fabric.shape {
                Shape::Switched { .. } => Look::Solid(kind),
                _ => Look::Outline(kind),
            };
            let bar = Rect { x: x + GAP, y: top, w: inner, h: if self.has_words { BAR } else { 4.0 } };
            if self.has_words {
                let font = match look {
                    Look::Solid(_) => ON_SOLID,
                    _ => ON_SOLID.of(super::scene::Ink::Link(kind)),
                };
                scene.labelled(bar, look, &[(font, short(parts, fabric))]);
                top += BAR + 8.0;
            } else {
                scene.rect(bar, Look::Solid(kind));
                top += 7.0;
            }
        }
        let first = node * parts.gpus;
        let (step_x, step_y) = (self.gpu.0 + self.gap(), self.gpu.1 + self.gap());
        let grid = self.across as f64 * step_x - self.gap();
        let left = frame.middle() - grid / 2.0;
        for gpu in 0..parts.gpus {
            let rect = Rect {
                x: left + (gpu % self.across) as f64 * step_x,
                y: top + (gpu / self.across) as f64 * step_y,
                w: self.gpu.0,
                h: self.gpu.1,
            };
            let look = gpu_box::look(overlay, first + gpu);
            if self.has_words {
                let mut lines = gpu_box::lines(machine, overlay, first + gpu);
                lines.truncate(if overlay.is_some() { 3 } else { 1 });
                scene.labelled(rect, look, &lines);
            } else {
                let number = match overlay {
                    Some(overlay) => overlay.rank(first + gpu).map(|rank| rank.to_string()),
                    None => Some(gpu.to_string()),
                };
                scene.labelled(rect, look, &[(TINY, vec![number.unwrap_or_default()])]);
            }
        }
        if self.has_words {
            scene.text(
                x + GAP,
                frame.bottom() - GAP + 2.0,
                &FAINT.fit(&[inventory(parts)], inner),
                FAINT,
                Anchor::Start,
            );
        }
    }
}

/// What GPUs are joined by within a node.
fn within<'a>(parts: &'a Parts) -> impl Iterator<Item = &'a Fabric> {
    parts.fabrics.iter().filter(|fabric| !matches!(fabric.shape, Shape::Switched { spans: 2.., .. })).take(4)
}

/// A fabric in ever fewer words.
fn short(parts: &Parts, fabric: &Fabric) -> Vec<String> {
    let kind = words::fabric_kind(fabric);
    let rate = match &fabric.shape {
        Shape::Switched { edge, .. } => format!("{} from each GPU", words::kind_and_rate(edge)),
        Shape::EveryPair(edge) => format!("every pair: {}", words::kind_and_rate(edge)),
        Shape::Links(_) => format!("{kind} {}", words::names_of(parts, &fabric.gpus)),
    };
    vec![words::fabric(parts, fabric), rate, kind.to_string()]
}

/// What else is in a node: `2 host bridges, 8 NICs`.
fn inventory(parts: &Parts) -> String {
    let mut counted: Vec<(&str, u64)> = Vec::new();
    for thing in &parts.things[parts.gpus..] {
        let kind = match thing.kind {
            VertexKind::Nic => "NIC",
            kind => words::hub_kind(kind),
        };
        match counted.iter_mut().find(|(known, _)| *known == kind) {
            _ if matches!(thing.kind, VertexKind::Network | VertexKind::Hub(HubKind::Nvswitch)) => {}
            Some((_, count)) => *count += 1,
            None => counted.push((kind, 1)),
        }
    }
    let words: Vec<String> = counted.into_iter().map(|(kind, number)| count(number, kind)).collect();
    words.join(", ")
}

/// All nodes as tiles, those that share a fabric under its bar, with the upper left corner at `x`, `y`, about as wide as `room`.
/// Gives back the right and lower end, and where lines to the network begin, if each node has its own.
pub(super) fn draw(
    scene: &mut Scene,
    machine: &Topology,
    parts: &Parts,
    overlay: Option<&Overlay>,
    tile: Tile,
    (x, y): (f64, f64),
    room: f64,
) -> (f64, f64, Vec<f64>) {
    let nodes = machine.nodes() as usize;
    let shown = nodes.min(MOST_NODES).min((MOST_GPUS / parts.gpus).max(1));
    let shared = parts.fabrics.iter().filter_map(|fabric| match &fabric.shape {
        Shape::Switched { spans, edge, .. } if *spans > 1 => Some((*spans as usize, edge.kind, fabric)),
        _ => None,
    });
    let shared: Vec<_> = shared.collect();
    let span = shared.iter().map(|(spans, _, _)| *spans).max().unwrap_or(nodes);
    let per_row = (1..=16)
        .rev()
        .find(|&tiles| f64::from(tiles) * (tile.width() + GAP) <= room + GAP)
        .map_or(1, |tiles: u8| usize::from(tiles))
        .max(if nodes <= 4 { nodes } else { 1 });
    let per_row = per_row.min(shown).min(span);
    // Rows as even as they go.
    let in_domain = span.min(shown);
    let per_row = in_domain.div_ceil(in_domain.div_ceil(per_row));
    let padding = if shared.is_empty() { 0.0 } else { GAP };
    let row = per_row as f64 * (tile.width() + GAP) - GAP;
    let widest =
        shared.iter().map(|(_, kind, fabric)| ON_SOLID.width(&domain(parts, fabric, span, *kind)) + 24.0);
    let row = widest.fold(row, f64::max);
    let (mut top, mut doors) = (y, Vec::new());
    for start in (0..shown).step_by(span) {
        let stop = (start + span).min(shown);
        if let (Some((_, kind, _)), true) = (shared.first(), nodes > 4) {
            let rows = (stop - start).div_ceil(per_row) as f64;
            let height = shared.len() as f64 * (BAR + 18.0) + rows * (tile.height(parts) + GAP) - GAP;
            let frame = Rect { x, y: top, w: row + 2.0 * padding, h: height + 2.0 * padding };
            scene.rect(frame, Look::Domain(*kind));
        }
        top += padding;
        for (_, kind, fabric) in &shared {
            let text = domain(parts, fabric, span.min(nodes - start), *kind);
            let bar = Rect { x: x + padding, y: top, w: row, h: BAR + 4.0 };
            scene.labelled(bar, Look::Solid(*kind), &[(ON_SOLID, vec![text])]);
            top += BAR + 18.0;
        }
        let (bar, first_row) = (top - 14.0, top);
        for (at, node) in (start..stop).enumerate() {
            let left = x + padding + (at % per_row) as f64 * (tile.width() + GAP);
            top = first_row + (at / per_row) as f64 * (tile.height(parts) + GAP);
            tile.draw(scene, machine, parts, overlay, node, (left, top));
            let middle = left + tile.width() / 2.0;
            if let (Some((_, kind, _)), true) = (shared.first(), at < per_row) {
                scene.line(vec![(middle, bar), (middle, first_row)], *kind, line_width(*kind));
            }
            if shown <= 4 {
                doors.push(middle);
            }
        }
        top += tile.height(parts);
        top += padding + GAP;
    }
    if shown < nodes {
        let more = count((nodes - shown) as u64, "more node");
        let text = format!("and {more} like these, with {} more GPUs", (nodes - shown) * parts.gpus);
        scene.text(x + padding, top + 14.0, &text, NAME, Anchor::Start);
        top += 26.0;
    }
    (x + row + 2.0 * padding, top - GAP, doors)
}

/// A fabric that nodes share.
fn domain(parts: &Parts, fabric: &Fabric, nodes: usize, kind: EdgeKind) -> String {
    let Shape::Switched { hubs, edge, .. } = &fabric.shape else { return kind.to_string() };
    let gpus = nodes * fabric.gpus.len();
    format!(
        "{}: one {kind} domain of {} and {gpus} GPUs, {} from each GPU",
        words::names_of(parts, hubs),
        count(nodes as u64, "node"),
        words::rate_of(edge)
    )
}
