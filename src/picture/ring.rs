//! GPUs around a ring, so that few of the links between them cross.

use shardwright_planner::topology::Edge;
use std::{
    collections::BTreeMap,
    f64::consts::{PI, TAU},
};

/// A straight link.
pub(super) type Chord = ((f64, f64), (f64, f64));

/// Where each GPU stands on a circle of radius 1, found by swapping pairs as long as that helps.
pub(super) fn arranged(gpus: &[usize], links: &[(usize, usize, Edge)]) -> BTreeMap<usize, (f64, f64)> {
    let mut order = gpus.to_vec();
    let mut least = badness(&order, links);
    loop {
        let mut best = None;
        for a in 0..order.len() {
            for b in a + 1..order.len() {
                order.swap(a, b);
                let badness = badness(&order, links);
                if badness < least {
                    least = badness;
                    best = Some((a, b));
                }
                order.swap(a, b);
            }
        }
        let Some((a, b)) = best else { break };
        order.swap(a, b);
    }
    let n = order.len() as f64;
    order
        .into_iter()
        .enumerate()
        .map(|(at, gpu)| {
            let angle = TAU * (at as f64 + 0.5) / n - PI / 2.0 - PI;
            (gpu, (angle.cos(), angle.sin()))
        })
        .collect()
}

/// Crossings count most, then how far links reach around.
fn badness(order: &[usize], links: &[(usize, usize, Edge)]) -> usize {
    let n = order.len();
    let ends: Vec<(usize, usize)> = links
        .iter()
        .map(|(a, b, _)| {
            let at = |gpu: usize| order.iter().position(|&other| other == gpu).unwrap_or(0);
            (at(*a).min(at(*b)), at(*a).max(at(*b)))
        })
        .collect();
    let crosses = |(a, b): (usize, usize), (c, d): (usize, usize)| a < c && c < b && b < d;
    let crossings: usize =
        ends.iter().map(|&one| ends.iter().filter(|&&other| crosses(one, other)).count()).sum();
    let reach: usize = ends.iter().map(|(a, b)| (b - a).min(n - (b - a))).sum();
    crossings * 100 + reach
}

/// For each of `wanted` chords the point on it that is farthest from all other chords and from the points found before.
pub(super) fn best_spots(chords: &[Chord], wanted: &[usize]) -> Vec<(f64, f64)> {
    let mut found: Vec<(f64, f64)> = Vec::new();
    for &at in wanted {
        let ((x1, y1), (x2, y2)) = chords[at];
        let candidates = (5..=15).map(|part| {
            let part = f64::from(part) / 20.0;
            (x1 + (x2 - x1) * part, y1 + (y2 - y1) * part)
        });
        let clearance = |spot: (f64, f64)| {
            let others = chords.iter().enumerate().filter(|(other, _)| *other != at);
            let chords = others.map(|(_, chord)| distance(spot, *chord));
            let points = found.iter().map(|point| (point.0 - spot.0).hypot(point.1 - spot.1) / 2.0);
            chords.chain(points).fold(f64::MAX, f64::min)
        };
        let best = candidates.max_by(|a, b| clearance(*a).total_cmp(&clearance(*b)));
        found.push(best.unwrap_or((x1, y1)));
    }
    found
}

/// From a point to a chord.
fn distance(point: (f64, f64), ((x1, y1), (x2, y2)): Chord) -> f64 {
    let (dx, dy) = (x2 - x1, y2 - y1);
    let length = (dx * dx + dy * dy).max(1e-9);
    let part = (((point.0 - x1) * dx + (point.1 - y1) * dy) / length).clamp(0.0, 1.0);
    (x1 + dx * part - point.0).hypot(y1 + dy * part - point.1)
}
