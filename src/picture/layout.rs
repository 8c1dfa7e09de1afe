//! A whole picture: the title, one node or many, the network, and the legend.

use super::{
    cluster::{self, Tile},
    fabric::line_width,
    node,
    overlay::Overlay,
    parts::Parts,
    scene::{Anchor, FAINT, Item, Look, NAME, ON_SOLID, PLAIN, Rect, Scene, TITLE},
    words,
};
use shardwright_planner::{
    size::count,
    topology::{EdgeKind, Topology, runs},
};

const MARGIN: f64 = 24.0;
const GAP: f64 = 12.0;
/// For tiles, whatever else there is.
const LEAST_ROOM: f64 = 1100.0;
/// Most GPUs, and most hubs and cards, of a node that is drawn in full.
const MOST_IN_FULL: (usize, usize) = (32, 64);
/// Most nodes that stand side by side, with names.
const FEW: u32 = 4;
/// Most groups that the legend tells apart; colours repeat after as many.
const MOST_GROUPS: u32 = 12;
/// Most lines about what has no place in the drawing.
const MOST_NOTES: usize = 6;

/// The picture of `machine`, with the ranks of a plan on its GPUs if there is one.
pub(super) fn scene(machine: &Topology, overlay: Option<&Overlay>) -> Scene {
    let parts = Parts::of(machine);
    let mut scene = Scene::default();
    let corner = (MARGIN, MARGIN + if overlay.is_some() { 106.0 } else { 88.0 });
    let hubs = parts.things.len() - parts.gpus;
    let fits = parts.gpus <= MOST_IN_FULL.0 && hubs <= MOST_IN_FULL.1;
    let (right, mut bottom) = match machine.nodes() {
        1 if fits => {
            let drawn = node::draw(&mut scene, machine, &parts, overlay, 0, corner);
            let doors = drawn.doors;
            network(&mut scene, machine, &parts, &doors, drawn.bottom, drawn.right);
            (drawn.right, drawn.bottom + network_height(machine))
        }
        1 => {
            let right = nodes(&mut scene, machine, &parts, overlay, Tile::large(&parts, overlay), corner);
            let text = "too many hubs and cards to draw one by one";
            scene.text(MARGIN, right.1 + 20.0, text, FAINT, Anchor::Start);
            (right.0, right.1 + 20.0)
        }
        2..=FEW => nodes(&mut scene, machine, &parts, overlay, Tile::large(&parts, overlay), corner),
        _ => {
            let mut y = corner.1;
            let mut right = 0.0;
            if fits {
                scene.text(corner.0, y + 2.0, "node0 in full; the others are like it", NAME, Anchor::Start);
                let drawn = node::draw(&mut scene, machine, &parts, overlay, 0, (corner.0, y + 18.0));
                network(&mut scene, machine, &parts, &drawn.doors, drawn.bottom, drawn.right);
                y = drawn.bottom + network_height(machine) + 38.0;
                right = drawn.right;
            }
            let bar = y - 38.0;
            let frame = (corner.0, y - if fits { 14.0 } else { 0.0 });
            let inner = (frame.0 + GAP, frame.1 + 34.0);
            let (all, bottom, _) = cluster::draw(
                &mut scene,
                machine,
                &parts,
                overlay,
                Tile::small(&parts),
                inner,
                f64::max(right - MARGIN - 2.0 * GAP, LEAST_ROOM),
            );
            let (all, bottom) = (all + GAP, bottom + GAP);
            let outer =
                Rect { x: frame.0, y: frame.1, w: f64::max(right, all) - frame.0, h: bottom - frame.1 };
            scene.rect(outer, Look::Outer);
            let title = format!("all {} nodes", machine.nodes());
            scene.text(inner.0, frame.1 + 22.0, &title, NAME, Anchor::Start);
            if fits && machine.network().is_some() {
                let x = inner.0 + NAME.width(&title) + 40.0;
                scene.line(vec![(x, bar), (x, frame.1)], EdgeKind::Network, line_width(EdgeKind::Network));
            }
            (f64::max(right, all), bottom)
        }
    };
    let right = f64::max(right, 700.0);
    if !parts.others.is_empty() {
        bottom = notes(&mut scene, &parts, bottom, right);
    }
    legend(&mut scene, overlay, bottom + 30.0, right);
    title(&mut scene, machine, overlay, right - MARGIN);
    scene.close(MARGIN);
    scene
}

fn title(scene: &mut Scene, machine: &Topology, overlay: Option<&Overlay>, room: f64) {
    let mut y = MARGIN + TITLE.size - 4.0;
    scene.text(MARGIN, y, &TITLE.fit(&[machine.name()], room), TITLE, Anchor::Start);
    y += 22.0;
    scene.text(MARGIN, y, &PLAIN.fit(&[machine.about()], room), PLAIN, Anchor::Start);
    let kinds: Vec<String> = machine
        .kinds()
        .iter()
        .map(|kind| {
            let bandwidth = kind.memory_bandwidth.map_or(String::new(), |rate| format!(" at {rate}"));
            format!("{} with {}{bandwidth}", kind.kind, words::size(kind.memory_bytes))
        })
        .collect();
    let of_all = format!(
        "{} × {}: ",
        count(u64::from(machine.nodes()), "node"),
        count(machine.gpus_per_node() as u64, "GPU")
    );
    y += 18.0;
    scene.text(MARGIN, y, &FAINT.fit(&[of_all + &kinds.join("; ")], room), FAINT, Anchor::Start);
    if let Some(overlay) = overlay {
        let mesh = overlay.mesh();
        let text = format!(
            "ranks of a plan: tp {} × pp {} × dp {} = {}",
            mesh.tp(),
            mesh.pp(),
            mesh.dp(),
            mesh.world_size()
        );
        scene.text(MARGIN, y + 18.0, &text, PLAIN, Anchor::Start);
    }
}

fn nodes(
    scene: &mut Scene,
    machine: &Topology,
    parts: &Parts,
    overlay: Option<&Overlay>,
    tile: Tile,
    corner: (f64, f64),
) -> (f64, f64) {
    let (right, bottom, doors) = cluster::draw(scene, machine, parts, overlay, tile, corner, LEAST_ROOM);
    let doors: Vec<(f64, f64)> = doors.into_iter().map(|x| (x, bottom)).collect();
    network(scene, machine, parts, &doors, bottom, right);
    (right, bottom + network_height(machine))
}

fn network_height(machine: &Topology) -> f64 {
    if machine.network().is_some() { 66.0 } else { 0.0 }
}

/// The network below what is plugged into it.
fn network(
    scene: &mut Scene,
    machine: &Topology,
    parts: &Parts,
    doors: &[(f64, f64)],
    bottom: f64,
    right: f64,
) {
    let Some(text) = words::network(machine, parts) else { return };
    let width = (right - MARGIN).max(ON_SOLID.width(&text).min(900.0) + 24.0);
    let bar = Rect { x: MARGIN, y: bottom + 36.0, w: width, h: 30.0 };
    scene.labelled(bar, Look::Solid(EdgeKind::Network), &[(ON_SOLID, vec![text])]);
    for &(x, y) in doors {
        scene.line(vec![(x, y), (x, bar.y)], EdgeKind::Network, line_width(EdgeKind::Network));
    }
}

/// What the drawing has no place for.
fn notes(scene: &mut Scene, parts: &Parts, bottom: f64, right: f64) -> f64 {
    let mut y = bottom + 28.0;
    let name = |at: usize| parts.things[at].name.as_str();
    for (from, to, edge) in parts.others.iter().take(MOST_NOTES) {
        let text = format!("also {} to {}: {}", name(*from), name(*to), words::kind_and_rate(edge));
        scene.text(MARGIN, y, &FAINT.fit(&[text], right - MARGIN), FAINT, Anchor::Start);
        y += 16.0;
    }
    if parts.others.len() > MOST_NOTES {
        let more = format!("and {} more", count((parts.others.len() - MOST_NOTES) as u64, "link"));
        scene.text(MARGIN, y, &more, FAINT, Anchor::Start);
        y += 16.0;
    }
    y - 16.0
}

/// The kinds of links that were drawn, and the groups of ranks.
fn legend(scene: &mut Scene, overlay: Option<&Overlay>, top: f64, right: f64) {
    let mut kinds: Vec<EdgeKind> = scene
        .items()
        .filter_map(|item| match item {
            Item::Line { kind, .. } | Item::Box { look: Look::Solid(kind) | Look::Outline(kind), .. } => {
                Some(*kind)
            }
            _ => None,
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut y = top;
    let mut x = MARGIN;
    for kind in kinds {
        let text = kind.to_string();
        scene.line(vec![(x, y - 4.0), (x + 36.0, y - 4.0)], kind, line_width(kind));
        scene.text(x + 44.0, y, &text, PLAIN, Anchor::Start);
        x += 44.0 + PLAIN.width(&text) + 28.0;
    }
    scene.text(x, y, "bandwidths of one direction", FAINT, Anchor::Start);
    let Some(overlay) = overlay else { return };
    y += 26.0;
    if overlay.groups() > MOST_GROUPS {
        let text = format!(
            "{} tensor-parallel groups of {} ranks: {MOST_GROUPS} colours, which repeat; numbers are ranks",
            overlay.groups(),
            overlay.mesh().tp()
        );
        scene.text(MARGIN, y, &PLAIN.fit(&[text], right - MARGIN), PLAIN, Anchor::Start);
        return;
    }
    let texts: Vec<String> = (0..overlay.groups())
        .map(|group| {
            let ranks: Vec<u32> = overlay.ranks(group).collect();
            let place = overlay.stage_and_copy(group);
            let place = if place.is_empty() { String::new() } else { format!(", {place}") };
            let what = if ranks.len() == 1 { "rank" } else { "ranks" };
            format!("tp group {group}: {what} {}{place}", runs(&ranks))
        })
        .collect();
    let width = 46.0 + texts.iter().map(|text| PLAIN.width(text)).fold(0.0, f64::max);
    let mut x = MARGIN;
    for (group, text) in (0..).zip(&texts) {
        if x > MARGIN && x + width > right + 24.0 {
            (x, y) = (MARGIN, y + 22.0);
        }
        scene.rect(Rect { x, y: y - 11.0, w: 14.0, h: 14.0 }, Look::Swatch(group));
        scene.text(x + 22.0, y, text, PLAIN, Anchor::Start);
        x += width;
    }
}
