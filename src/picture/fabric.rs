//! What joins GPUs directly, drawn above their row: bars for switches and for links of each with each, arches for bridges, and
//! a ring of its own for whatever is more tangled.

use super::{
    gpu_box,
    overlay::Overlay,
    parts::{Fabric, Parts, Shape},
    ring::{Chord, arranged, best_spots},
    scene::{Anchor, FAINT, Font, Ink, Look, NAME, ON_SOLID, PLAIN, Rect, Scene},
    words,
};
use shardwright_planner::topology::{Edge, EdgeKind};
use std::collections::BTreeMap;

const BAR: f64 = 30.0;
const LANE: f64 = 27.0;
/// Between what stands one above the other.
const GAP: f64 = 26.0;
/// Most links that are drawn as arches.
const MOST_ARCHES: usize = 6;
/// Most GPUs that are drawn as a ring.
const MOST_ON_RING: usize = 16;
const RING_HEIGHT: f64 = 250.0;

/// How wide a line of some kind is.
pub(super) fn line_width(kind: EdgeKind) -> f64 {
    match kind {
        EdgeKind::Nvlink | EdgeKind::Xgmi => 3.5,
        EdgeKind::Socket => 3.0,
        EdgeKind::Pcie | EdgeKind::Memory | EdgeKind::Network => 2.0,
    }
}

/// The fabrics of a node, arranged above its GPUs.
pub(super) struct Fabrics<'a> {
    parts: &'a Parts<'a>,
    placed: Vec<Placed<'a>>,
    /// Where lines leave each GPU: by fabric and link.
    attached: BTreeMap<(usize, usize, usize), f64>,
    /// Of all together.
    pub(super) height: f64,
}

struct Placed<'a> {
    fabric: &'a Fabric,
    drawing: Drawing,
    left: f64,
    right: f64,
    /// From the top of the GPUs to its own lower edge.
    lift: f64,
}

enum Drawing {
    Bar {
        text: String,
        is_switch: bool,
        kind: EdgeKind,
    },
    /// Links with their lanes.
    Arches(Vec<(usize, usize, Edge, usize)>),
    Ring,
}

impl Drawing {
    fn height(&self) -> f64 {
        match self {
            Self::Bar { .. } => BAR,
            Self::Arches(links) => {
                14.0 + LANE * links.iter().map(|link| link.3 + 1).max().unwrap_or(0) as f64
            }
            Self::Ring => RING_HEIGHT,
        }
    }
}

impl<'a> Fabrics<'a> {
    /// `columns` are the left and right edges of the GPUs' boxes.
    pub(super) fn arrange(parts: &'a Parts<'a>, columns: &[(f64, f64)]) -> Self {
        let middle = |gpu: usize| f64::midpoint(columns[gpu].0, columns[gpu].1);
        let mut fabrics: Vec<&Fabric> = parts.fabrics.iter().collect();
        fabrics.sort_by_key(|fabric| match fabric.shape {
            Shape::Links(_) => 0,
            Shape::EveryPair(_) => 1,
            Shape::Switched { spans, .. } => 1 + spans,
        });
        let mut placed: Vec<Placed> = Vec::new();
        for fabric in fabrics {
            let left = fabric.gpus.iter().map(|&gpu| columns[gpu].0).fold(f64::MAX, f64::min);
            let mut right = fabric.gpus.iter().map(|&gpu| columns[gpu].1).fold(0.0, f64::max);
            let kind = words::fabric_kind(fabric);
            let text = words::fabric(parts, fabric);
            let drawing = match &fabric.shape {
                Shape::Switched { .. } => Drawing::Bar { text, is_switch: true, kind },
                Shape::EveryPair(_) => Drawing::Bar { text, is_switch: false, kind },
                Shape::Links(links) if links.len() <= MOST_ARCHES => Drawing::Arches(lanes(links, middle)),
                Shape::Links(_) if fabric.gpus.len() <= MOST_ON_RING => {
                    right = right.max(left + 480.0);
                    Drawing::Ring
                }
                Shape::Links(_) => Drawing::Bar { text, is_switch: false, kind },
            };
            if let Drawing::Bar { text, .. } = &drawing {
                right = right.max(left + ON_SOLID.width(text) + 24.0);
            }
            let below = placed.iter().filter(|other| other.left < right && left < other.right);
            let lift = below.map(|other| other.lift + other.drawing.height()).fold(0.0, f64::max);
            let gap = if matches!(drawing, Drawing::Arches(_)) { 0.0 } else { GAP };
            placed.push(Placed { fabric, drawing, left, right, lift: lift + gap });
        }
        let height = placed.iter().map(|placed| placed.lift + placed.drawing.height()).fold(0.0, f64::max);
        let attached = attach(&placed, columns, middle);
        Self { parts, placed, attached, height }
    }

    /// How far to the right it reaches.
    pub(super) fn right(&self) -> f64 {
        self.placed.iter().map(|placed| placed.right).fold(0.0, f64::max)
    }

    /// Draws all above GPUs whose boxes begin at `top`; `first` is the place of the node's first GPU among all.
    pub(super) fn draw(&self, scene: &mut Scene, top: f64, overlay: Option<&Overlay>, first: usize) {
        for (number, placed) in self.placed.iter().enumerate() {
            let bottom = top - placed.lift;
            match &placed.drawing {
                Drawing::Bar { text, is_switch, kind } => {
                    let bar = Rect { x: placed.left, y: bottom - BAR, w: placed.right - placed.left, h: BAR };
                    let (look, font) = match is_switch {
                        true => (Look::Solid(*kind), ON_SOLID),
                        false => (Look::Outline(*kind), ON_SOLID.of(Ink::Link(*kind))),
                    };
                    scene.labelled(bar, look, &[(font, vec![text.clone()])]);
                    for &gpu in &placed.fabric.gpus {
                        let x = self.attached[&(gpu, number, 0)];
                        scene.line(vec![(x, top), (x, bottom - 1.0)], *kind, line_width(*kind));
                    }
                }
                Drawing::Arches(links) => self.arches(scene, number, links, top, bottom),
                Drawing::Ring => self.ring(scene, placed, bottom, overlay, first),
            }
        }
    }

    fn arches(
        &self,
        scene: &mut Scene,
        number: usize,
        links: &[(usize, usize, Edge, usize)],
        top: f64,
        bottom: f64,
    ) {
        let ends = |at: usize| {
            let (a, b, _, _) = links[at];
            let (a, b) = (self.attached[&(a, number, at)], self.attached[&(b, number, at)]);
            (a.min(b), a.max(b))
        };
        for (at, (_, _, edge, lane)) in links.iter().enumerate() {
            let (left, right) = ends(at);
            let y = bottom - LANE * (*lane as f64 + 1.0) + 4.0;
            scene.line(
                vec![(left, top), (left, y), (right, y), (right, top)],
                edge.kind,
                line_width(edge.kind),
            );
            let font = FAINT.of(Ink::Link(edge.kind));
            let text = words::rate_of(edge);
            let half = font.width(&text) / 2.0;
            // Where no higher arch comes down through the words.
            let is_free = |x: f64| {
                let others = (0..links.len()).filter(|&other| links[other].3 > *lane);
                others.flat_map(|other| [ends(other).0, ends(other).1]).all(|up| (up - x).abs() > half + 4.0)
            };
            let spots = [0.5, 0.25, 0.75, 0.35, 0.65].map(|part| left + (right - left) * part);
            let x = spots.into_iter().find(|&x| is_free(x)).unwrap_or(spots[0]);
            scene.text(x, y - 5.0, &text, font, Anchor::Middle);
        }
    }

    fn ring(&self, scene: &mut Scene, placed: &Placed, bottom: f64, overlay: Option<&Overlay>, first: usize) {
        let Shape::Links(links) = &placed.fabric.shape else { return };
        let panel =
            Rect { x: placed.left, y: bottom - RING_HEIGHT, w: placed.right - placed.left, h: RING_HEIGHT };
        scene.rect(panel, Look::Frame);
        let title = words::fabric(self.parts, placed.fabric);
        scene.text(
            panel.x + 14.0,
            panel.y + 22.0,
            &title,
            NAME.of(Ink::Link(words::fabric_kind(placed.fabric))),
            Anchor::Start,
        );
        let mut kinds: Vec<Edge> = Vec::new();
        for (_, _, edge) in links {
            if !kinds.contains(edge) {
                kinds.push(*edge);
            }
        }
        kinds.sort_by_key(|edge| (edge.count, edge.each));
        for (at, edge) in kinds.iter().enumerate() {
            let y = panel.y + 44.0 + 20.0 * at as f64;
            scene.line(
                vec![(panel.x + 14.0, y - 4.0), (panel.x + 50.0, y - 4.0)],
                edge.kind,
                thickness(edge),
            );
            scene.text(panel.x + 58.0, y, &words::rate_of(edge), PLAIN, Anchor::Start);
        }

        let spots = arranged(&placed.fabric.gpus, links);
        let (rx, ry) = ((panel.w / 2.0 - 60.0).min(330.0), panel.h / 2.0 - 30.0);
        let at = |gpu: usize| {
            let (x, y) = spots[&gpu];
            (panel.middle() + rx * x, panel.y + panel.h / 2.0 + ry * y)
        };
        let chords: Vec<Chord> = links.iter().map(|&(a, b, _)| (at(a), at(b))).collect();
        for ((_, _, edge), (a, b)) in links.iter().zip(&chords) {
            scene.line(vec![*a, *b], edge.kind, thickness(edge));
        }
        let several: Vec<usize> = (0..links.len()).filter(|&at| links[at].2.count > 1).collect();
        for (at, (x, y)) in several.iter().zip(best_spots(&chords, &several)) {
            let edge = &links[*at].2;
            let (text, font) =
                (format!("{}×", edge.count), Font { bold: true, ..FAINT.of(Ink::Link(edge.kind)) });
            let width = font.width(&text) + 6.0;
            scene.rect(Rect { x: x - width / 2.0, y: y - 8.0, w: width, h: 16.0 }, Look::Plate);
            scene.text(x, y + 4.0, &text, font, Anchor::Middle);
        }
        for &gpu in &placed.fabric.gpus {
            let (x, y) = at(gpu);
            let mark = Rect { x: x - 27.0, y: y - 13.0, w: 54.0, h: 26.0 };
            let name = self.parts.things[gpu].name.clone();
            scene.labelled(mark, gpu_box::look(overlay, first + gpu), &[(NAME, vec![name])]);
        }
    }
}

fn thickness(edge: &Edge) -> f64 {
    (f64::from(edge.count) * 2.5 - 0.5).min(8.0)
}

/// Links, each in the lowest lane in which it meets no other: short ones first.
fn lanes(links: &[(usize, usize, Edge)], middle: impl Fn(usize) -> f64) -> Vec<(usize, usize, Edge, usize)> {
    let span = |a: usize, b: usize| (middle(a).min(middle(b)), middle(a).max(middle(b)));
    let mut sorted = links.to_vec();
    sorted.sort_by(|a, b| {
        let length = |link: &(usize, usize, Edge)| span(link.0, link.1).1 - span(link.0, link.1).0;
        length(a).total_cmp(&length(b))
    });
    let mut placed: Vec<(usize, usize, Edge, usize)> = Vec::new();
    for (a, b, edge) in sorted {
        let (left, right) = span(a, b);
        let is_taken = |lane: usize| {
            placed.iter().any(|&(c, d, _, other)| {
                let (l, r) = span(c, d);
                other == lane && l < right + 1.0 && left < r + 1.0
            })
        };
        let lane = (0..).find(|&lane| !is_taken(lane)).unwrap_or(0);
        placed.push((a, b, edge, lane));
    }
    placed
}

/// Where lines leave GPUs: side by side, those to the left first.
fn attach(
    placed: &[Placed],
    columns: &[(f64, f64)],
    middle: impl Fn(usize) -> f64,
) -> BTreeMap<(usize, usize, usize), f64> {
    let mut of_gpu: BTreeMap<usize, Vec<(f64, usize, usize)>> = BTreeMap::new();
    for (number, placed) in placed.iter().enumerate() {
        match &placed.drawing {
            Drawing::Ring => {}
            Drawing::Bar { .. } => {
                for &gpu in &placed.fabric.gpus {
                    of_gpu.entry(gpu).or_default().push((middle(gpu), number, 0));
                }
            }
            Drawing::Arches(links) => {
                for (at, &(a, b, _, lane)) in links.iter().enumerate() {
                    // Of two to the same side the higher arch begins nearer to the middle of the box.
                    let nearer = 0.01 * lane as f64;
                    let towards = |from: usize, to: usize| {
                        middle(to) + if middle(to) > middle(from) { -nearer } else { nearer }
                    };
                    of_gpu.entry(a).or_default().push((towards(a, b), number, at));
                    of_gpu.entry(b).or_default().push((towards(b, a), number, at));
                }
            }
        }
    }
    let mut attached = BTreeMap::new();
    for (gpu, mut lines) in of_gpu {
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (left, right) = columns[gpu];
        let step = ((right - left) / (lines.len() as f64 + 1.0)).min(22.0);
        let start = middle(gpu) - step * (lines.len() as f64 - 1.0) / 2.0;
        for (at, (_, number, link)) in lines.into_iter().enumerate() {
            attached.insert((gpu, number, link), start + step * at as f64);
        }
    }
    attached
}
