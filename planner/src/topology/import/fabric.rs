//! The links that join GPUs past PCIe.

use super::{
    kinds::Kinds,
    matrix::{Matrix, Relation},
    plugged::{link, row},
    speeds::{self, gigabytes},
};
use crate::{
    quote::quote,
    size::count,
    topology::{
        Bandwidth, EdgeKind, GpuLinks, HubKind, joined,
        names::Numbers,
        schema::{Document, Hub},
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Links between GPUs, and from GPUs to switches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fabric {
    /// Of two GPUs, the lower number first: what links them, and how many.
    pub(super) pairs: BTreeMap<(usize, usize), (EdgeKind, u32)>,
    /// Of a GPU: how many links lead to switches.
    pub(super) switched: BTreeMap<usize, u32>,
}

/// What the links of the GPUs are.
pub(super) struct Links<'a> {
    pub(super) kinds: &'a Kinds,
    /// CUDA compute capability of each GPU, where the source tells.
    pub(super) sm: &'a [Option<u32>],
}

impl Links<'_> {
    fn of(&self, gpu: usize, kind: EdgeKind) -> (GpuLinks, bool) {
        match kind {
            EdgeKind::Xgmi => speeds::xgmi(self.kinds.of(gpu)),
            _ => speeds::nvlink(self.kinds.of(gpu), self.sm.get(gpu).copied().flatten()),
        }
    }
}

impl Fabric {
    /// The NVLinks of a matrix, which tells for each pair how many lie between them: its own, or all that a GPU has to the
    /// switches. Where a GPU would need more of its own than it has, there are switches.
    pub(super) fn of_matrix(matrix: &Matrix, links: &Links<'_>, notes: &mut Vec<String>) -> Self {
        let mut fabric = Self::default();
        let between = |from, to| match matrix.relation(from, to) {
            Relation::Links(count) => Some(count),
            _ => None,
        };
        let pairs = (0..matrix.gpus).flat_map(|to| (0..to).map(move |from| (from, to)));
        let linked = pairs.filter(|&(from, to)| between(from, to).is_some());
        for set in joined(matrix.gpus, linked) {
            let others = |from: usize| set.iter().filter(move |to| **to != from);
            let all: Option<Vec<u32>> =
                set.iter().flat_map(|&from| others(from).map(move |&to| between(from, to))).collect();
            let alike = all.filter(|all| all.iter().all(|count| *count == all[0]));
            let most = |gpu| links.of(gpu, EdgeKind::Nvlink).0.count;
            let sum =
                |from: usize| others(from).filter_map(|&to| between(from, to)).fold(0, u32::saturating_add);
            let too_many = set.iter().copied().find(|&gpu| sum(gpu) > most(gpu));
            match (alike, too_many) {
                (Some(all), Some(_)) => fabric.switched.extend(set.iter().map(|&gpu| (gpu, all[0]))),
                (_, too_many) => {
                    if let Some(gpu) = too_many {
                        let kind = quote(links.kinds.of(gpu).name).to_string();
                        let (sum, most) = (sum(gpu), most(gpu));
                        notes.push(format!(
                            "GPU{gpu} has {sum} NVLinks in the matrix, but a {kind} has {most}"
                        ));
                    }
                    for (at, &from) in set.iter().enumerate() {
                        for &to in &set[at + 1..] {
                            if let Some(count) = between(from, to) {
                                fabric.pairs.insert((from, to), (EdgeKind::Nvlink, count));
                            }
                        }
                    }
                }
            }
        }
        fabric
    }

    /// Writes the switches and the links.
    pub(super) fn write(&self, links: &Links<'_>, document: &mut Document, notes: &mut Vec<String>) {
        self.note_assumed(links, notes);
        self.write_switch(links, document);
        let width = |(from, to): (usize, usize), kind| {
            [from, to].map(|gpu| links.of(gpu, kind).0.bandwidth).into_iter().min()
        };
        let gpus = self.pairs.keys().map(|(_, to)| to + 1).max().unwrap_or(0);
        for set in joined(gpus, self.pairs.keys().copied()) {
            let pairs = || {
                let inside = self.pairs.iter().filter(|((from, _), _)| set.contains(from));
                inside.map(|(&pair, &(kind, count))| (pair, kind, count, width(pair, kind)))
            };
            let Some((_, kind, count, Some(each))) = pairs().next() else { continue };
            let alike = pairs().all(|pair| (pair.1, pair.2, pair.3) == (kind, count, Some(each)));
            let all = pairs().count() == set.len() * (set.len() - 1) / 2;
            let names: Vec<String> = set.iter().map(|gpu| format!("gpu{gpu}")).collect();
            let among = row(names.iter().map(String::as_str)).filter(|_| alike && all && set.len() > 2);
            if among.is_some() {
                document.links.push(link(kind, None, among, count, each.bytes_per_second()));
                continue;
            }
            for ((from, to), kind, count, each) in pairs() {
                let ends = [format!("gpu{from}"), format!("gpu{to}")];
                let ends = ends.each_ref().map(String::as_str);
                let each = each.map_or(0, Bandwidth::bytes_per_second);
                document.links.push(link(kind, Some(ends), None, count, each));
            }
        }
    }

    fn write_switch(&self, links: &Links<'_>, document: &mut Document) {
        let mut alike: BTreeMap<(u32, Bandwidth), Vec<u32>> = BTreeMap::new();
        for (&gpu, &count) in &self.switched {
            let each = links.of(gpu, EdgeKind::Nvlink).0.bandwidth;
            alike.entry((count, each)).or_default().extend(u32::try_from(gpu));
        }
        let Some((&(count, each), gpus)) = alike.iter().max_by_key(|(key, gpus)| (gpus.len(), **key)) else {
            return;
        };
        document.hubs.push(Hub {
            gpus: Numbers::new(gpus.clone()),
            count,
            bandwidth: Some(each),
            ..Hub::new("nvswitch", HubKind::Nvswitch)
        });
        for ((other, width), gpus) in &alike {
            for gpu in gpus.iter().filter(|_| (*other, *width) != (count, each)) {
                let ends = [&*format!("gpu{gpu}"), "nvswitch"];
                document.links.push(link(
                    EdgeKind::Nvlink,
                    Some(ends),
                    None,
                    *other,
                    width.bytes_per_second(),
                ));
            }
        }
    }

    /// Says what of the links is only assumed.
    fn note_assumed(&self, links: &Links<'_>, notes: &mut Vec<String>) {
        let of_pairs = self.pairs.iter().flat_map(|(&(from, to), &(kind, _))| [(from, kind), (to, kind)]);
        let of_switch = self.switched.keys().map(|&gpu| (gpu, EdgeKind::Nvlink));
        let assumed: BTreeSet<(&str, EdgeKind, u64)> = of_pairs
            .chain(of_switch)
            .filter_map(|(gpu, kind)| match links.of(gpu, kind) {
                (of, true) => Some((links.kinds.of(gpu).name, kind, of.bandwidth.bytes_per_second())),
                _ => None,
            })
            .collect();
        for (name, kind, bytes) in assumed {
            notes.push(format!(
                "the bandwidth of one {kind} of a {} is not known: {} taken",
                quote(name),
                gigabytes(bytes)
            ));
        }
    }

    /// Says which GPUs have links by their data sheet, but none here.
    pub(super) fn note_missing(&self, links: &Links<'_>, advice: &str, notes: &mut Vec<String>) {
        let kinds = links.kinds;
        let has = |gpu: &usize| {
            kinds.of(*gpu).known.is_some_and(|known| known.nvlink.is_some() || known.xgmi.is_some())
        };
        let is_linked = |gpu: &usize| {
            self.switched.contains_key(gpu) || self.pairs.keys().any(|(from, to)| from == gpu || to == gpu)
        };
        let without: Vec<u32> = (0..kinds.gpus())
            .filter(|gpu| kinds.gpus() > 1 && has(gpu) && !is_linked(gpu))
            .filter_map(|gpu| u32::try_from(gpu).ok())
            .collect();
        if let Some(&first) = without.first() {
            let name = kinds.of(first as usize).name;
            notes.push(format!(
                "no links between GPUs for {} ({}), which {} can have{advice}",
                count(without.len() as u64, "GPU"),
                crate::topology::runs(&without),
                quote(name),
            ));
        }
    }
}
