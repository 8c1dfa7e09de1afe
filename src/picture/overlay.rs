//! The ranks of a plan on the GPUs of a machine.

use shardwright_planner::{
    mesh::{Coordinates, Mesh},
    plan::Plan,
    quote::quote,
    size::count,
    topology::Topology,
};
use std::collections::HashMap;

/// Which rank runs on which GPU.
pub(crate) struct Overlay {
    mesh: Mesh,
    /// By places in [`Topology::gpus`].
    rank_of: Vec<Option<u32>>,
    gpu_of: Vec<usize>,
}

/// Why a plan does not fit onto a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    #[error("the plan is for {} and has rank {rank} on {}, which {} does not have: {} of {} GPUs", quote(planned), quote(gpu), quote(machine), count(u64::from(*nodes), "node"), per_node)]
    NoSuchGpu { rank: u32, gpu: String, planned: String, machine: String, nodes: u32, per_node: usize },
    #[error(
        "the plan is for {} and has rank {rank} on {}, {}; in {} that is {}",
        quote(planned),
        quote(gpu),
        quote(kind),
        quote(machine),
        quote(other)
    )]
    OtherKind { rank: u32, gpu: String, kind: String, planned: String, machine: String, other: String },
}

impl OverlayError {
    /// What the reader can do about it.
    pub(crate) fn help(&self) -> &'static str {
        match self {
            Self::NoSuchGpu { .. } => "name the machine that was planned for, with as many --nodes",
            Self::OtherKind { .. } => "name the machine that was planned for",
        }
    }
}

impl Overlay {
    /// The ranks of `plan` on `machine`.
    ///
    /// # Errors
    /// [`OverlayError`] when the machine lacks a GPU of the plan, or has another kind in its place.
    pub(crate) fn new(plan: &Plan, machine: &Topology) -> Result<Self, OverlayError> {
        let place_of: HashMap<&str, usize> =
            machine.gpus().iter().enumerate().map(|(place, gpu)| (gpu.name.as_str(), place)).collect();
        let mut rank_of = vec![None; machine.gpus().len()];
        let mut gpu_of = Vec::with_capacity(plan.ranks.len());
        for rank in &plan.ranks {
            let (planned, name) = (plan.topology.clone(), machine.name().to_owned());
            let Some(&place) = place_of.get(rank.gpu.as_str()) else {
                return Err(OverlayError::NoSuchGpu {
                    rank: rank.rank,
                    gpu: rank.gpu.clone(),
                    planned,
                    machine: name,
                    nodes: machine.nodes(),
                    per_node: machine.gpus_per_node(),
                });
            };
            let kind = &machine.kind_of(place).kind;
            if *kind != rank.kind {
                return Err(OverlayError::OtherKind {
                    rank: rank.rank,
                    gpu: rank.gpu.clone(),
                    kind: rank.kind.clone(),
                    planned,
                    machine: name,
                    other: kind.clone(),
                });
            }
            rank_of[place] = Some(rank.rank);
            gpu_of.push(place);
        }
        Ok(Self { mesh: plan.mesh, rank_of, gpu_of })
    }

    /// The rank on the GPU at `gpu` in [`Topology::gpus`].
    pub(crate) fn rank(&self, gpu: usize) -> Option<u32> {
        self.rank_of.get(gpu).copied().flatten()
    }

    /// How many tensor-parallel groups there are.
    pub(super) fn groups(&self) -> u32 {
        self.mesh.pp() * self.mesh.dp()
    }

    /// The tensor-parallel group of a rank.
    pub(super) fn group(&self, rank: u32) -> u32 {
        rank / self.mesh.tp()
    }

    /// Where a group stands: any of its ranks.
    pub(super) fn place(&self, group: u32) -> Coordinates {
        self.mesh.coordinates(group * self.mesh.tp())
    }

    /// The ranks of a group.
    pub(super) fn ranks(&self, group: u32) -> std::ops::Range<u32> {
        group * self.mesh.tp()..(group + 1) * self.mesh.tp()
    }

    /// The GPUs of a group, in the order of its ranks.
    pub(super) fn gpus(&self, group: u32) -> Vec<usize> {
        self.ranks(group).filter_map(|rank| self.gpu_of.get(rank as usize).copied()).collect()
    }

    pub(super) fn mesh(&self) -> Mesh {
        self.mesh
    }

    /// What a rank has beside its group, short: `stage 0 · copy 1`; empty where there is one of each.
    pub(super) fn stage_and_copy(&self, group: u32) -> String {
        let place = self.place(group);
        let stage = (self.mesh.pp() > 1).then(|| format!("stage {}", place.pp));
        let copy = (self.mesh.dp() > 1).then(|| format!("copy {}", place.dp));
        stage.into_iter().chain(copy).collect::<Vec<_>>().join(" · ")
    }
}
