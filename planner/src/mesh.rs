//! The mesh of ranks: its axes, and how a rank's number and its coordinates give each other.
//!
//! tp is innermost, then pp, then dp: `rank = (dp * pp_size + pp) * tp_size + tp`, as Megatron-LM and vLLM number them.

use serde::{Deserialize, Serialize};

/// Most ranks a mesh may have; plans beyond it are refused rather than computed.
pub const MAX_WORLD_SIZE: u32 = 65_536;

/// Sizes of the data-, pipeline- and tensor-parallel axes. Each is at least 1, their product at most [`MAX_WORLD_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Sizes", into = "Sizes")]
pub struct Mesh {
    dp: u32,
    pp: u32,
    tp: u32,
}

/// A rank's place on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinates {
    /// Which copy of the model.
    pub dp: u32,
    /// Which pipeline stage.
    pub pp: u32,
    /// Which member of the tensor-parallel group.
    pub tp: u32,
}

/// Sizes that make no mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tp {tp}, pp {pp}, dp {dp} make no mesh: each is at least 1 and their product at most {MAX_WORLD_SIZE}"
)]
pub struct MeshError {
    tp: u32,
    pp: u32,
    dp: u32,
}

/// The axes as they are written in a plan, before they are checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    tp: u32,
    pp: u32,
    dp: u32,
}

impl Mesh {
    /// A mesh of `dp × pp × tp` ranks.
    ///
    /// # Errors
    /// [`MeshError`] when an axis is 0 or the product is above [`MAX_WORLD_SIZE`].
    pub fn new(dp: u32, pp: u32, tp: u32) -> Result<Self, MeshError> {
        let world = dp.checked_mul(pp).and_then(|ranks| ranks.checked_mul(tp)).unwrap_or(u32::MAX);
        if world == 0 || world > MAX_WORLD_SIZE {
            return Err(MeshError { tp, pp, dp });
        }
        Ok(Self { dp, pp, tp })
    }

    /// Copies of the whole model.
    pub fn dp(self) -> u32 {
        self.dp
    }

    /// Pipeline stages.
    pub fn pp(self) -> u32 {
        self.pp
    }

    /// Ranks that share each layer.
    pub fn tp(self) -> u32 {
        self.tp
    }

    /// Ranks in all.
    pub fn world_size(self) -> u32 {
        self.dp * self.pp * self.tp
    }

    /// The number of the rank at `place`.
    pub fn rank(self, place: Coordinates) -> u32 {
        (place.dp * self.pp + place.pp) * self.tp + place.tp
    }

    /// The place of rank number `rank`, which must be below the world size.
    pub fn coordinates(self, rank: u32) -> Coordinates {
        debug_assert!(rank < self.world_size());
        Coordinates { dp: rank / (self.tp * self.pp), pp: rank / self.tp % self.pp, tp: rank % self.tp }
    }
}

impl TryFrom<Sizes> for Mesh {
    type Error = MeshError;

    fn try_from(sizes: Sizes) -> Result<Self, MeshError> {
        Self::new(sizes.dp, sizes.pp, sizes.tp)
    }
}

impl From<Mesh> for Sizes {
    fn from(mesh: Mesh) -> Self {
        Self { tp: mesh.tp, pp: mesh.pp, dp: mesh.dp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rank_and_coordinates_give_each_other(dp in 1u32..9, pp in 1u32..9, tp in 1u32..17) {
            let mesh = Mesh::new(dp, pp, tp).unwrap();
            for rank in 0..mesh.world_size() {
                let place = mesh.coordinates(rank);
                prop_assert!(place.dp < dp && place.pp < pp && place.tp < tp);
                prop_assert_eq!(mesh.rank(place), rank);
            }
        }
    }

    #[test]
    fn empty_and_absurd_meshes_are_refused() {
        assert!(Mesh::new(1, 0, 4).is_err());
        assert!(Mesh::new(1, 1, MAX_WORLD_SIZE + 1).is_err());
        assert!(Mesh::new(u32::MAX, u32::MAX, u32::MAX).is_err());
    }
}
