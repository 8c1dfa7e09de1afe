//! Each half of the points, predicted with what was fitted to the other.

use crate::{
    points::{Kind, Point},
    predict::Known,
};
use shardwright_planner::{
    calibration::{self, fit},
    serving::Assumptions,
};
use std::collections::{BTreeMap, BTreeSet};

/// The points, and in which half they are.
pub(crate) struct Halves<'a> {
    points: &'a [(Point, Known)],
    halves: Vec<usize>,
}

/// A point, predicted.
pub(crate) struct Compared<'a> {
    pub(crate) point: &'a Point,
    pub(crate) half: usize,
    pub(crate) measured: f64,
    /// With the assumptions that come with shardwright.
    pub(crate) as_it_comes: f64,
    /// With those that were fitted to the other half.
    pub(crate) fitted: f64,
}

impl<'a> Halves<'a> {
    /// Of each kind, the sources in the order of the alphabet take turns: points of one source have their faults in common.
    pub(crate) fn of(points: &'a [(Point, Known)]) -> Self {
        let mut sources: BTreeMap<Kind, BTreeSet<&str>> = BTreeMap::new();
        for (point, _) in points {
            sources.entry(point.kind).or_default().insert(&point.source);
        }
        let place = |point: &Point| {
            let of_kind = sources.get(&point.kind)?;
            of_kind.iter().position(|source| *source == point.source)
        };
        let halves = points.iter().map(|(point, _)| place(point).unwrap_or(0) % 2).collect();
        Self { points, halves }
    }

    /// Fits `assumptions` to each half, and predicts each with what was fitted to the other.
    pub(crate) fn compare(&self, assumptions: &Assumptions) -> (Vec<Compared<'a>>, [Assumptions; 2]) {
        let fitted = [0, 1].map(|half| {
            let of_half: Vec<calibration::Point> = self
                .points
                .iter()
                .zip(&self.halves)
                .filter_map(|((_, known), of)| match known {
                    Known::Assumed(point) if *of == half => Some(point.clone()),
                    _ => None,
                })
                .collect();
            fit(assumptions, &of_half).assumptions
        });
        let compare = |((point, known), &half): (&'a (Point, Known), &usize)| {
            let ((as_it_comes, measured), (other, _)) =
                (known.both(assumptions), known.both(&fitted[1 - half]));
            Compared { point, half, measured, as_it_comes, fitted: other }
        };
        (self.points.iter().zip(&self.halves).map(compare).collect(), fitted)
    }
}
