//! One node in full: its GPUs in a row, what joins them above, and below what they are plugged into, each root of that in a
//! frame around all that hangs on it.

use super::{
    fabric::{Fabrics, line_width},
    gpu_box,
    overlay::Overlay,
    parts::Parts,
    scene::{Anchor, FAINT, Ink, Look, NAME, ON_SOLID, Rect, Scene},
    words,
};
use shardwright_planner::topology::{Edge, EdgeKind, Topology, VertexKind};
use std::collections::BTreeMap;

const GAP: f64 = 12.0;
const HUB: f64 = 42.0;
const HUB_WIDTH: f64 = 104.0;
const NIC: (f64, f64) = (96.0, 40.0);
/// Most cards of a hub that have boxes of their own.
const MOST_CARDS: usize = 2;
const SOCKET: f64 = 108.0;
/// Between two frames: room for the words on the link.
const BETWEEN: f64 = 104.0;
const STEP: f64 = 24.0;
const LANE: f64 = 30.0;

/// What the caller goes on with.
pub(super) struct Drawn {
    pub(super) right: f64,
    pub(super) bottom: f64,
    /// Where lines to the network begin.
    pub(super) doors: Vec<(f64, f64)>,
}

/// A hub with what hangs on it, in columns.
struct Block {
    /// `None` for GPUs that hang on none.
    hub: Option<usize>,
    x: f64,
    w: f64,
    /// What hangs on the hub itself is in the first columns.
    own: f64,
    gpus: Vec<usize>,
    /// GPUs side by side.
    across: usize,
    /// Network cards, those in one box together: below, or beside the GPUs where another hub is in the way below.
    nics: Vec<Vec<usize>>,
    nics_are_below: bool,
    on_it: Vec<Block>,
    depth: usize,
}

/// Heights of the rows.
struct Rows {
    gpu_top: f64,
    gpu: f64,
    /// Of each depth, from the roots upwards.
    hubs: Vec<f64>,
    rail: f64,
    nics: f64,
    bottom: f64,
}

/// How wide the boxes of GPUs are.
fn gpu_width(parts: &Parts) -> f64 {
    if parts.gpus > 8 { 86.0 } else { 112.0 }
}

/// Draws a node with its upper left corner at `x`, `y`; `first` is the place of its first GPU among all.
pub(super) fn draw(
    scene: &mut Scene,
    machine: &Topology,
    parts: &Parts,
    overlay: Option<&Overlay>,
    first: usize,
    (x, y): (f64, f64),
) -> Drawn {
    let mut blocks: Vec<Block> = parts.roots.iter().map(|&root| measure(parts, Some(root), 0)).collect();
    if !parts.loose().is_empty() {
        blocks.push(measure(parts, None, 0));
    }
    let sides = sides(parts);
    let mut right = x;
    let mut frames = Vec::new();
    for block in &mut blocks {
        let Some(root) = block.hub else {
            block.place(right);
            right += block.w + GAP;
            continue;
        };
        let side = sides[&root];
        let content = block.w + if block.w > 0.0 { GAP } else { 0.0 };
        let frame = Rect { x: right, y: 0.0, w: content + SOCKET + 2.0 * GAP, h: 0.0 };
        let on_right = side == Side::Right;
        block.place(right + GAP + if on_right { 0.0 } else { SOCKET + GAP });
        let socket = if on_right { frame.right() - GAP - SOCKET } else { frame.x + GAP };
        frames.push((root, frame, socket));
        right = frame.right() + if on_right { BETWEEN } else { 2.0 * GAP };
    }

    let width = gpu_width(parts);
    let mut columns = vec![(0.0, 0.0); parts.gpus];
    for block in &blocks {
        block.each(&mut |block| {
            for (at, &gpu) in block.gpus.iter().enumerate() {
                let left = block.gpu_x(at, width);
                columns[gpu] = (left, left + width);
            }
        });
    }
    let fabrics = Fabrics::arrange(parts, &columns);
    let gpu = (0..parts.gpus)
        .map(|gpu| gpu_box::height(&gpu_box::lines(machine, overlay, first + gpu)))
        .fold(48.0, f64::max);
    let rows = rows(
        &blocks,
        y + fabrics.height + if fabrics.height > 0.0 && !frames.is_empty() { 4.0 } else { 0.0 },
        gpu,
    );
    fabrics.draw(scene, rows.gpu_top, overlay, first);

    let mut doors = Vec::new();
    let mut drawing = Drawing { scene, machine, parts, overlay, first, rows: &rows, doors: &mut doors };
    for ((root, frame, socket), block) in frames.iter().zip(&blocks) {
        drawing.socket(block, *root, *frame, *socket);
    }
    for block in &blocks {
        drawing.block(block);
    }
    let bottom = drawing.links(&frames, &sides);
    let right = frames.iter().map(|(_, frame, _)| frame.right()).fold(fabrics.right(), f64::max);
    let right = columns.iter().map(|column| column.1).fold(right, f64::max);
    Drawn { right, bottom, doors }
}

/// On which side of its frame a root stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// Two neighbours that are linked stand side by side, each in its own frame.
fn sides(parts: &Parts) -> BTreeMap<usize, Side> {
    let mut sides = BTreeMap::new();
    let linked = |a: usize, b: usize| {
        parts.sockets.iter().any(|link| (link.0, link.1) == (a, b) || (link.1, link.0) == (a, b))
    };
    let paired = parts.sockets_alike().is_none();
    let mut at = 0;
    while at < parts.roots.len() {
        let root = parts.roots[at];
        match parts.roots.get(at + 1) {
            Some(&next) if paired && linked(root, next) => {
                sides.insert(root, Side::Right);
                sides.insert(next, Side::Left);
                at += 2;
            }
            _ => {
                sides.insert(root, Side::Left);
                at += 1;
            }
        }
    }
    sides
}

/// Cards by the boxes they are drawn in: one each, or one for many that are alike.
fn boxes_of_cards(parts: &Parts, nics: Vec<usize>) -> Vec<Vec<usize>> {
    if nics.len() <= MOST_CARDS {
        return nics.into_iter().map(|nic| vec![nic]).collect();
    }
    let likeness = |nic: usize| {
        let door = parts.doors.iter().find(|(door, _)| *door == nic).map(|(_, edge)| *edge);
        (door, parts.plug[nic].as_ref().map(|plug| &plug.edges))
    };
    nics.chunk_by(|&a, &b| likeness(a) == likeness(b)).map(<[usize]>::to_vec).collect()
}

fn measure(parts: &Parts, hub: Option<usize>, depth: usize) -> Block {
    let plugged = hub.map_or_else(|| parts.loose(), |hub| parts.plugged[hub].clone());
    let gpus: Vec<usize> = plugged.iter().copied().filter(|&at| at < parts.gpus).collect();
    let nics = boxes_of_cards(
        parts,
        plugged.iter().copied().filter(|&at| parts.things[at].kind == VertexKind::Nic).collect(),
    );
    let on_it: Vec<Block> = hub
        .iter()
        .flat_map(|&hub| parts.hubs_on(hub))
        .map(|hub| measure(parts, Some(hub), depth + 1))
        .collect();
    let across = gpus.len().min(8);
    let row = |count: usize, width: f64| (count as f64 * (width + GAP) - GAP).max(0.0);
    let (gpu_row, nic_row) = (row(across, gpu_width(parts)), row(nics.len(), NIC.0));
    let nics_are_below = depth < 2;
    let own = match nics_are_below {
        true => gpu_row.max(nic_row),
        false if gpu_row > 0.0 && nic_row > 0.0 => gpu_row + GAP + nic_row,
        false => gpu_row + nic_row,
    };
    let parts_of_it = on_it.iter().map(|block| block.w).chain((own > 0.0).then_some(own));
    let w = parts_of_it.fold(0.0, |all, part| if all > 0.0 { all + GAP + part } else { part });
    let least = if depth > 0 { HUB_WIDTH } else { 0.0 };
    let own = if on_it.is_empty() { own.max(least) } else { own };
    Block { hub, x: 0.0, w: w.max(least), own, gpus, across, nics, nics_are_below, on_it, depth }
}

impl Block {
    fn place(&mut self, x: f64) {
        self.x = x;
        let mut x = x + if self.own > 0.0 { self.own + GAP } else { 0.0 };
        for block in &mut self.on_it {
            block.place(x);
            x += block.w + GAP;
        }
    }

    fn each(&self, then: &mut dyn FnMut(&Self)) {
        then(self);
        for block in &self.on_it {
            block.each(then);
        }
    }

    /// Where the line leaves that leads from its hub to the next: beside those to its own cards.
    fn plug_x(&self) -> f64 {
        let cards_are_below = self.nics_are_below && !self.nics.is_empty();
        self.x + if cards_are_below { 16.0 } else { self.w / 2.0 }
    }

    fn beside(&self) -> usize {
        if self.nics_are_below { 0 } else { self.nics.len() }
    }

    fn gpu_x(&self, at: usize, width: f64) -> f64 {
        let beside = self.beside() as f64 * (NIC.0 + GAP);
        let row = self.across as f64 * (width + GAP) - GAP;
        self.x + (self.own - row - beside) / 2.0 + (at % self.across) as f64 * (width + GAP)
    }

    fn nic_x(&self, at: usize, gpu_width: f64) -> f64 {
        if self.nics_are_below {
            let row = self.nics.len() as f64 * (NIC.0 + GAP) - GAP;
            return self.x + (self.own - row) / 2.0 + at as f64 * (NIC.0 + GAP);
        }
        let gpus = if self.across == 0 { 0.0 } else { self.across as f64 * (gpu_width + GAP) };
        let row = gpus + self.nics.len() as f64 * (NIC.0 + GAP) - GAP;
        self.x + (self.own - row) / 2.0 + gpus + at as f64 * (NIC.0 + GAP)
    }
}

fn rows(blocks: &[Block], gpu_top: f64, gpu: f64) -> Rows {
    let (mut deep, mut high, mut has_nics) = (0, 1, false);
    for block in blocks {
        block.each(&mut |block| {
            deep = deep.max(block.depth);
            high = high.max(block.gpus.len().div_ceil(block.across.max(1)));
            has_nics |= !block.nics.is_empty() && block.nics_are_below;
        });
    }
    let mut y = gpu_top + high as f64 * (gpu + 6.0) - 6.0 + STEP;
    let mut hubs = vec![0.0; deep + 1];
    for depth in (1..=deep).rev() {
        hubs[depth] = y;
        y += HUB + STEP;
    }
    let has_roots = blocks.iter().any(|block| block.hub.is_some());
    let rail = y - if deep > 0 { 8.0 } else { 0.0 };
    let after = rail + 12.0;
    let nics = rail + if deep > 0 { 18.0 } else { STEP };
    let bottom = match (has_nics, has_roots) {
        (true, _) => nics + NIC.1,
        (false, true) => after,
        (false, false) => gpu_top + high as f64 * (gpu + 6.0) - 6.0,
    };
    // Four lines of words fit into a root.
    let bottom = if has_roots { bottom.max(gpu_top + 96.0) } else { bottom };
    Rows { gpu_top, gpu, hubs, rail, nics, bottom }
}

struct Drawing<'a> {
    scene: &'a mut Scene,
    machine: &'a Topology,
    parts: &'a Parts<'a>,
    overlay: Option<&'a Overlay>,
    first: usize,
    rows: &'a Rows,
    doors: &'a mut Vec<(f64, f64)>,
}

impl Drawing<'_> {
    fn is_door(&self, at: usize) -> bool {
        self.parts.doors.iter().any(|(door, _)| *door == at)
    }

    /// What hangs on a root leads to its rail, what hangs on another hub to the hub's box.
    fn block(&mut self, block: &Block) {
        let width = gpu_width(self.parts);
        let rows = self.rows;
        let own_rails = (block.depth == 0).then(|| self.rails(block));
        // What is plugged into a root with hubs has to pass its rail; its own cards come from the rail itself.
        let (top, bottom) = match block.depth {
            0 => (rows.rail, rows.rail),
            depth => (rows.hubs[depth], rows.hubs[depth] + HUB),
        };
        let end = |kind: EdgeKind, of_box: f64| match &own_rails {
            Some(rails) => rails.iter().find(|(known, _)| *known == kind).map_or(of_box, |(_, y)| *y),
            None => of_box,
        };
        for (at, &gpu) in block.gpus.iter().enumerate() {
            let y = rows.gpu_top + (at / block.across) as f64 * (rows.gpu + 6.0);
            let rect = Rect { x: block.gpu_x(at, width), y, w: width, h: rows.gpu };
            let place = self.first + gpu;
            let lines = gpu_box::lines(self.machine, self.overlay, place);
            self.scene.labelled(rect, gpu_box::look(self.overlay, place), &lines);
            let is_last = at + block.across >= block.gpus.len();
            if let (true, Some(plug)) = (is_last, &self.parts.plug[gpu]) {
                self.plug(
                    &plug.edges,
                    rect.middle(),
                    rect.bottom(),
                    |kind| end(kind, top),
                    own_rails.is_some(),
                );
            }
        }
        for (at, nics) in block.nics.iter().enumerate() {
            let nic = nics[0];
            let y = if block.nics_are_below { rows.nics } else { rows.gpu_top };
            let rect = Rect { x: block.nic_x(at, width), y, w: NIC.0, h: NIC.1 };
            self.cards(rect, nics);
            let Some(plug) = &self.parts.plug[nic] else { continue };
            let edges = plug.edges.clone();
            match block.nics_are_below {
                true => {
                    self.plug(&edges, rect.middle(), rect.y, |kind| end(kind, bottom), own_rails.is_some());
                }
                false => self.plug(&edges, rect.middle(), rect.bottom(), |kind| end(kind, top), false),
            }
            if self.is_door(nic) && block.nics_are_below {
                self.doors.push((rect.middle(), rect.bottom()));
            }
        }
        for inner in &block.on_it {
            self.block(inner);
            if let Some(plug) = inner.hub.and_then(|hub| self.parts.plug[hub].as_ref()) {
                let from = rows.hubs[inner.depth] + HUB;
                self.plug(&plug.edges, inner.plug_x(), from, |kind| end(kind, top), own_rails.is_some());
            }
        }
        if let (Some(hub), true) = (block.hub, block.depth > 0) {
            let rect = Rect { x: block.x, y: top, w: block.w, h: HUB };
            let name = self.parts.things[hub].name.clone();
            let kind = words::hub_kind(self.parts.things[hub].kind);
            let names = vec![format!("{name}, {kind}"), name];
            self.scene.labelled(
                rect,
                Look::Hub,
                &[(NAME, names), (FAINT.of(Ink::Dark), speeds(self.parts, hub))],
            );
            if self.is_door(hub) && block.nics.is_empty() && block.depth == 1 {
                self.doors.push((rect.middle(), rect.bottom()));
            }
        }
    }

    /// Lines from a thing at `x`, `y` to where they end, with a dot where that is a rail.
    fn plug(&mut self, edges: &[Edge], x: f64, y: f64, end: impl Fn(EdgeKind) -> f64, on_rail: bool) {
        let start = x - 7.0 * (edges.len() as f64 - 1.0);
        for (at, edge) in edges.iter().enumerate() {
            let x = start + 14.0 * at as f64;
            let end = end(edge.kind);
            let (line, width) = (vec![(x, y), (x, end)], line_width(edge.kind));
            if on_rail {
                self.scene.line(line, edge.kind, width);
                self.scene.dot(x, end, edge.kind);
            } else {
                self.scene.hop(line, edge.kind, width);
            }
        }
    }

    /// A box of cards that are alike.
    fn cards(&mut self, rect: Rect, nics: &[usize]) {
        let door = self.parts.doors.iter().find(|(door, _)| *door == nics[0]).map(|(_, edge)| edge);
        let plug = self.parts.plug[nics[0]].as_ref().and_then(|plug| plug.edges.first());
        let rate = door.or(plug).map(|edge| words::rate(edge.bytes_per_second())).unwrap_or_default();
        let rate = if nics.len() > 1 { format!("{} × {rate}", nics.len()) } else { rate };
        let name = words::names_of(self.parts, nics);
        let lines = [(NAME, vec![name]), (FAINT.of(Ink::Dark), vec![rate])];
        self.scene.labelled(rect, Look::Nic, &lines);
    }

    /// One rail for each kind of link into a root; those that GPUs use above those that cards use.
    fn rails(&self, block: &Block) -> Vec<(EdgeKind, f64)> {
        let of = |things: &[usize]| -> Vec<EdgeKind> {
            let plugs = things.iter().filter_map(|&at| self.parts.plug[at].as_ref());
            plugs.flat_map(|plug| plug.edges.iter().map(|edge| edge.kind)).collect()
        };
        let hubs: Vec<usize> = block.on_it.iter().filter_map(|block| block.hub).collect();
        let mut kinds: Vec<EdgeKind> = Vec::new();
        for kind in [of(&block.gpus), of(&hubs), of(&block.nics.concat())].concat() {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let top = self.rows.rail - 7.0 * (kinds.len() as f64 - 1.0);
        kinds.into_iter().enumerate().map(|(at, kind)| (kind, top + 14.0 * at as f64)).collect()
    }

    fn socket(&mut self, block: &Block, root: usize, frame: Rect, x: f64) {
        let rows = self.rows;
        let frame = Rect { y: rows.gpu_top - GAP, h: rows.bottom - rows.gpu_top + 2.0 * GAP, ..frame };
        self.scene.rect(frame, Look::Frame);
        let socket = Rect { x, y: rows.gpu_top, w: SOCKET, h: rows.bottom - rows.gpu_top };
        let thing = self.parts.things[root];
        let mut lines =
            vec![(NAME, vec![thing.name.clone()]), (FAINT, vec![words::hub_kind(thing.kind).to_owned()])];
        if let Some(numa) = thing.numa {
            lines.push((FAINT, vec![format!("NUMA {numa}")]));
        }
        lines.extend(
            speeds_by_kind(self.parts, root).into_iter().map(|line| (FAINT.of(Ink::Dark), vec![line])),
        );
        self.scene.labelled(socket, Look::Socket, &lines);
        let on_left = x < block.x;
        for (kind, y) in self.rails(block) {
            let far = self.reaches(block, kind, on_left);
            if let Some(far) = far {
                let near = if on_left { socket.right() } else { socket.x };
                self.scene.line(vec![(near, y), (far, y)], kind, line_width(kind));
            }
        }
        if self.is_door(root) {
            self.doors.push((socket.middle(), socket.bottom()));
        }
    }

    /// How far a rail goes: to the farthest that hangs on it.
    fn reaches(&self, block: &Block, kind: EdgeKind, to_right: bool) -> Option<f64> {
        let width = gpu_width(self.parts);
        let uses = |at: usize| {
            self.parts.plug[at].as_ref().is_some_and(|plug| plug.edges.iter().any(|edge| edge.kind == kind))
        };
        let gpus = block
            .gpus
            .iter()
            .enumerate()
            .filter(|(_, gpu)| uses(**gpu))
            .map(|(at, _)| block.gpu_x(at, width) + width / 2.0);
        let nics = block
            .nics
            .iter()
            .enumerate()
            .filter(|(_, nic)| uses(nic[0]))
            .map(|(at, _)| block.nic_x(at, width) + NIC.0 / 2.0);
        let hubs = block.on_it.iter().filter(|block| block.hub.is_some_and(uses)).map(Block::plug_x);
        let all = gpus.chain(nics).chain(hubs);
        if to_right { all.reduce(f64::max) } else { all.reduce(f64::min) }
    }

    /// The links between roots; how far down everything goes then.
    fn links(&mut self, frames: &[(usize, Rect, f64)], sides: &BTreeMap<usize, Side>) -> f64 {
        let frame_bottom = self.rows.bottom + if frames.is_empty() { 0.0 } else { GAP };
        let socket_of = |root: usize| frames.iter().find(|frame| frame.0 == root).map(|frame| frame.2);
        let place = |root: usize| frames.iter().position(|frame| frame.0 == root);
        if let Some(edge) = self.parts.sockets_alike() {
            let xs: Vec<f64> = self.parts.roots.iter().filter_map(|&root| socket_of(root)).collect();
            let (left, right) = (
                xs.iter().copied().fold(f64::MAX, f64::min),
                xs.iter().copied().fold(0.0, f64::max) + SOCKET,
            );
            let bar = Rect { x: left, y: frame_bottom + 14.0, w: right - left, h: 28.0 };
            let text = format!(
                "{}, every pair: {}",
                words::names_of(self.parts, &self.parts.roots),
                words::kind_and_rate(&edge)
            );
            self.scene.labelled(
                bar,
                Look::Outline(edge.kind),
                &[(ON_SOLID.of(Ink::Link(edge.kind)), vec![text])],
            );
            for x in xs {
                self.scene.line(
                    vec![(x + SOCKET / 2.0, self.rows.bottom), (x + SOCKET / 2.0, bar.y)],
                    edge.kind,
                    line_width(edge.kind),
                );
            }
            return bar.bottom();
        }
        let mut bottom = frame_bottom;
        for &(a, b, edge) in &self.parts.sockets {
            let (Some(x_a), Some(x_b), Some(at_a), Some(at_b)) =
                (socket_of(a), socket_of(b), place(a), place(b))
            else {
                continue;
            };
            let (left, right) = (x_a.min(x_b), x_a.max(x_b));
            let (first, is_next) = (at_a.min(at_b), at_a.abs_diff(at_b) == 1);
            let font = FAINT.of(Ink::Link(edge.kind));
            let faces = is_next && sides[&frames[first].0] == Side::Right;
            if faces {
                let y = f64::midpoint(self.rows.gpu_top, self.rows.bottom);
                self.scene.line(vec![(left + SOCKET, y), (right, y)], edge.kind, line_width(edge.kind));
                let middle = f64::midpoint(left + SOCKET, right);
                self.scene.text(middle, y - 9.0, &edge.kind.to_string(), font, Anchor::Middle);
                self.scene.text(middle, y + 17.0, &words::rate_of(&edge), font, Anchor::Middle);
            } else {
                let y = bottom + LANE - 6.0;
                let (start, end) = (left + SOCKET / 2.0 + 8.0, right + SOCKET / 2.0 - 8.0);
                self.scene.line(
                    vec![(start, self.rows.bottom), (start, y), (end, y), (end, self.rows.bottom)],
                    edge.kind,
                    line_width(edge.kind),
                );
                self.scene.text(
                    f64::midpoint(start, end),
                    y - 5.0,
                    &words::kind_and_rate(&edge),
                    font,
                    Anchor::Middle,
                );
                bottom += LANE;
            }
        }
        bottom
    }
}

/// How fast GPUs and hubs are plugged into a hub, and it into the next: one figure where all are alike. Cards say it themselves.
fn speeds(parts: &Parts, hub: usize) -> Vec<String> {
    let up = parts.plug[hub].as_ref().map(|plug| plug.edges[0]);
    let down = distinct(parts, hub, |at| parts.things[at].kind != VertexKind::Nic);
    let is_like = |a: &Edge, b: &Edge| (a.kind, a.count, a.each) == (b.kind, b.count, b.each);
    match (down.as_slice(), up) {
        ([one], Some(up)) if !is_like(one, &up) => {
            let figure = words::rate_of(one).replace(" GB/s", "");
            let all_gpus = parts.hubs_on(hub).next().is_none();
            let what = if all_gpus { "GPU" } else { "each" };
            let up = words::rate_of(&up);
            vec![format!("{what} {figure}, up {up}"), format!("{figure}, up {up}"), format!("up {up}")]
        }
        ([_, _, ..], Some(up)) => vec![format!("up {}", words::rate_of(&up))],
        (_, Some(up)) => vec![words::kind_and_rate(&up), words::rate_of(&up)],
        ([one], None) => vec![words::kind_and_rate(one)],
        (_, None) => Vec::new(),
    }
}

/// The same for a root, one line for each kind of thing that is plugged in unlike the others.
fn speeds_by_kind(parts: &Parts, root: usize) -> Vec<String> {
    if let [one] = distinct(parts, root, |_| true).as_slice() {
        return vec![words::kind_and_rate(one)];
    }
    let is_nic = |at: usize| parts.things[at].kind == VertexKind::Nic;
    let of_kind = |what: &str, edges: Vec<Edge>| {
        let kinds: Vec<Edge> = edges;
        match kinds.as_slice() {
            [] => None,
            [one] => Some(format!("{what} {}", words::rate_of(one))),
            several => {
                let least = several.iter().map(Edge::bytes_per_second).min().unwrap_or(0);
                Some(format!("{what} ≥ {}", words::rate(least)))
            }
        }
    };
    let kinds = [
        of_kind("GPU", distinct(parts, root, |at| at < parts.gpus)),
        of_kind("hub", distinct(parts, root, |at| at >= parts.gpus && !is_nic(at))),
        of_kind("NIC", distinct(parts, root, is_nic)),
    ];
    kinds.into_iter().flatten().collect()
}

fn distinct(parts: &Parts, hub: usize, wanted: impl Fn(usize) -> bool) -> Vec<Edge> {
    let mut found: Vec<Edge> = Vec::new();
    for plug in parts.plugged[hub].iter().filter(|at| wanted(**at)).filter_map(|&at| parts.plug[at].as_ref())
    {
        for edge in &plug.edges {
            if !found
                .iter()
                .any(|known| (known.kind, known.count, known.each) == (edge.kind, edge.count, edge.each))
            {
                found.push(*edge);
            }
        }
    }
    found
}
