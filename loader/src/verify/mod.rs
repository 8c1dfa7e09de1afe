//! Proving that what lies on the devices is what lies in the files.
//!
//! In come a rank's schedule, its memory, what was summed up while the files were read, and the communicator; out goes, on every
//! rank alike, how many tensors were verified or which are wrong and on which ranks. It goes batch by batch, beside the loading
//! of later ones. The expected fingerprints are summed over shares of the *files* that know nothing of the plan's boxes, so a
//! wrong box is found as surely as a wrong byte.

mod contents;
mod expected;
mod local;
mod own;
mod replicas;
mod sample;
mod sums;

pub use sample::{Extent, chosen};

use crate::{
    collective::{CollectiveError, Communicator, Reduce},
    device::{DeviceError, DeviceMemory},
    fingerprint::{Fingerprint, seed_of},
    manifest::Manifest,
    schedule::{Batches, PlacedTensor, Schedule},
    source::SourceError,
    tensors::Tensors,
};
use own::OwnSums;
pub use replicas::Replicated;
use shardwright_planner::{
    checkpoint::Catalog,
    plan::{Plan, PlanError},
};
use std::collections::{BTreeMap, HashMap};
use sums::{Compared, Wrong};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Tensors whose fingerprints were compared and are those of the files.
    pub tensors: u64,
    /// Tensors that were not compared, because a sample was asked for.
    pub left_out: u64,
    /// Bytes that the fingerprints were computed over on this rank's device.
    pub bytes: u64,
    /// The tensors that are wrong; the same on all ranks.
    pub mismatches: Vec<Mismatch>,
}

/// A tensor that is not what the files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its name.
    pub tensor: String,
    /// The ranks whose own bytes differ from the file's. Empty when every rank has just what its boxes say, but the boxes do
    /// not make up the tensor.
    pub ranks: Vec<u32>,
    /// The file's fingerprint.
    pub expected: Fingerprint,
    /// The sum over the ranks.
    pub found: Fingerprint,
}

/// Why it could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Ranks have different plans.
    #[error("rank {rank} has another plan than some other rank: its digest is {digest}")]
    OtherPlan {
        /// This rank.
        rank: u32,
        /// Its plan's digest.
        digest: String,
    },
    /// Ranks were asked to verify different tensors.
    #[error("rank {rank} was asked to verify other tensors than some other rank: {}", if *full { "all" } else { "a sample" })]
    OtherExtent {
        /// This rank.
        rank: u32,
        /// Whether it was asked to verify all.
        full: bool,
    },
    /// Processes read different checkpoints, which have the same headers.
    #[error("{} other weights than rank {first}, under the same names", ranks_that(ranks, "reads", "read"))]
    OtherContents {
        /// The first rank.
        first: u32,
        /// The ranks whose process reads others, as far as they were heard of.
        ranks: Vec<u32>,
    },
    /// Ranks have different manifests of what to compare with.
    #[error("{} given another manifest than rank {first}", ranks_that(ranks, "was", "were"))]
    OtherSums {
        /// The first rank.
        first: u32,
        /// The ranks that have others.
        ranks: Vec<u32>,
    },
    /// Some ranks have a manifest of what to compare with, and some have not.
    #[error("rank {rank} was {} a manifest, and some other rank was{}", if *given { "given" } else { "not given" }, if *given { " not" } else { "" })]
    OtherManifest {
        /// This rank.
        rank: u32,
        /// Whether it was given one.
        given: bool,
    },
    /// The ranks could not agree.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The files could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// `rank 3 was`, `ranks 2, 3 were`.
fn ranks_that(ranks: &[u32], one: &str, many: &str) -> String {
    let names: Vec<String> = ranks.iter().map(u32::to_string).collect();
    match names.as_slice() {
        [name] => format!("rank {name} {one}"),
        names => format!("ranks {} {many}", names.join(", ")),
    }
}

/// What says what should lie on the devices.
#[derive(Debug, Clone, Copy)]
pub enum Standard<'a> {
    /// A manifest.
    Manifest(&'a Manifest),
    /// The files.
    Files {
        /// Whether this rank is the one of its process to say whether other processes read the same files.
        samples: bool,
    },
}

/// What one rank brings to verification.
pub struct Verification<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its checkpoint.
    pub catalog: &'a Catalog,
    /// The rank's schedule.
    pub schedule: &'a Schedule,
    /// The order of all tensors.
    pub batches: &'a Batches,
    /// The rank's memory.
    pub memory: &'a dyn DeviceMemory,
    /// The checkpoint's tensors, for finding out who is wrong.
    pub tensors: &'a Tensors<'a>,
    /// Which tensors: see [`chosen`].
    pub chosen: &'a [bool],
    /// What says what should lie there.
    pub standard: Standard<'a>,
    /// The boxes that several ranks hold; those of the plan where ranks verify together.
    pub replicated: &'a Replicated,
    /// Called again and again between pieces of work of some MiB; an error ends verification with it.
    pub step: &'a dyn Fn() -> Result<(), VerifyError>,
}

/// One rank's side of verification, batch by batch. All ranks go through the same batches in the same order.
pub struct Verifier<'a> {
    this: &'a Verification<'a>,
    verified: Verified,
}

/// Sums of a rank's pieces, each by its tensor's place in the schedule and its number there.
pub type PieceSums = BTreeMap<(usize, usize), Fingerprint>;

/// What lies in the rank's memory of a batch's tensors.
pub enum Arrived<'a> {
    /// Was summed up on its way: the sum of each piece that has any bytes.
    Summed(&'a PieceSums),
    /// Is to be summed up by the device.
    OnDevice,
}

impl<'a> Verifier<'a> {
    /// Begins: the ranks agree that they have the same plan and verify the same tensors. Without a communicator the rank is
    /// verified alone, against the bytes that its boxes have in the files; that the boxes of all ranks make up the tensors is
    /// then taken from the plan.
    ///
    /// # Errors
    /// [`VerifyError`] when they do not.
    pub fn new(
        this: &'a Verification<'a>,
        communicator: Option<&mut dyn Communicator>,
    ) -> Result<Self, VerifyError> {
        if let Some(communicator) = communicator {
            agree(this, communicator)?;
        }
        Ok(Self { this, verified: Verified::default() })
    }

    /// Verifies batch `number`: `expected` is this rank's share of what the files say, by the tensors' numbers in the catalog. Gives what is wrong with them, the same on all ranks.
    ///
    /// # Errors
    /// [`VerifyError`] when the ranks cannot agree or the bytes cannot be read; a mismatch is no error here.
    pub fn batch(
        &mut self,
        number: usize,
        arrived: &Arrived<'_>,
        expected: &HashMap<usize, Fingerprint>,
        communicator: Option<&mut dyn Communicator>,
    ) -> Result<&[Mismatch], VerifyError> {
        let this = self.this;
        let mut batch = Batch { tensors: Vec::new() };
        let mut places = this.batches.of_schedule(number, this.schedule).peekable();
        for id in this.batches.tensors(number) {
            let held = places.next_if(|&place| this.schedule.tensor(place).id == id);
            if this.chosen.get(id) != Some(&true) {
                // Alone, only the rank's own tensors count.
                let counts = communicator.is_some() || held.is_some();
                self.verified.left_out += u64::from(counts);
                continue;
            }
            let held = held.map(|place| (place, this.schedule.tensor(place)));
            let seed = seed_of(&this.catalog.tensors()[id].name);
            let expected = expected.get(&id).copied().unwrap_or_default();
            batch.tensors.push(BatchTensor { id, seed, held, own: None, expected });
        }
        own::sum_up(this, &mut batch, arrived)?;
        self.verified.bytes += batch.answered_bytes(communicator.is_some());
        let before = self.verified.mismatches.len();
        let Some(communicator) = communicator else {
            local::compare(this, &batch, &mut self.verified);
            return Ok(&self.verified.mismatches[before..]);
        };
        let compared = sums::compare(&batch, communicator)?;
        let differ = replicas::compare(this.replicated, &batch, communicator)?;
        // Replicas that differ while the sum is right: a rank that does not answer in the sum is wrong.
        let is_wrong =
            |id: usize, compared: &Compared| compared.expected != compared.found || differ.contains(&id);
        let all = batch.tensors.iter().map(|tensor| tensor.id).zip(&compared);
        let mut wrong: Vec<Wrong> = all
            .filter(|(id, compared)| is_wrong(*id, compared))
            .map(|(id, compared)| compared.named(id))
            .collect();
        wrong.sort_by_key(|mismatch| mismatch.id);
        let mismatches = local::blame(this, &batch, &wrong, communicator)?;
        self.verified.tensors += (compared.len() - mismatches.len()) as u64;
        self.verified.mismatches.extend(mismatches);
        Ok(&self.verified.mismatches[before..])
    }

    /// What was found in all batches.
    pub fn finish(self) -> Verified {
        let mut verified = self.verified;
        verified.mismatches.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        verified
    }
}

/// The tensors of a batch that are verified.
struct Batch<'a> {
    tensors: Vec<BatchTensor<'a>>,
}

struct BatchTensor<'a> {
    /// Its number in the catalog.
    id: usize,
    /// The seed of its fingerprint.
    seed: u64,
    /// What the rank holds of it, and its place in the schedule.
    held: Option<(usize, PlacedTensor<'a>)>,
    /// What lies in the rank's memory of it.
    own: Option<OwnSums>,
    /// The rank's share of what the file says.
    expected: Fingerprint,
}

impl<'a> BatchTensor<'a> {
    /// What the rank holds of it, and what lies there.
    fn own(&self) -> Option<(PlacedTensor<'a>, &OwnSums)> {
        Some((self.held?.1, self.own.as_ref()?))
    }
}

impl Batch<'_> {
    /// Bytes of this rank that are compared: of all it holds, or of what it answers for among others.
    fn answered_bytes(&self, with_others: bool) -> u64 {
        let of_tensor = |tensor: &BatchTensor<'_>| match tensor.own() {
            Some((held, own)) if with_others => own.answered(held).bytes(),
            Some((_, own)) => own.whole().bytes(),
            None => 0,
        };
        self.tensors.iter().map(of_tensor).sum()
    }
}

/// Checks that all ranks have the same plan and the same weights, and are to compare the same, before anything is compared that
/// depends on it.
fn agree(this: &Verification<'_>, communicator: &mut dyn Communicator) -> Result<(), VerifyError> {
    let digest = this.plan.digest()?;
    // A digest is hexadecimal text; eight letters a number.
    let mut words: Vec<u64> = digest
        .as_bytes()
        .chunks(8)
        .map(|letters| letters.iter().fold(0, |word, &letter| word << 8 | u64::from(letter)))
        .collect();
    let full = this.chosen.iter().all(|chosen| *chosen);
    let (given, weights) = match this.standard {
        Standard::Manifest(manifest) => (true, Some(manifest.sum())),
        Standard::Files { samples: true } => (false, Some(contents::sample(this)?)),
        Standard::Files { samples: false } => (false, None),
    };
    words.extend([u64::from(full), u64::from(given)]);
    // Largest and smallest in one step: whoever knew first that they differ would fail the other's second one. A rank that does
    // not say what its weights are has no part in either.
    let own = weights.map(|sum| sum.to_limbs()[..WEIGHTS].to_vec());
    let inverted = own.iter().flatten().map(|limb| !limb);
    let nothing = || std::iter::repeat_n(0, if own.is_some() { 0 } else { WEIGHTS });
    let largest = words.iter().copied().chain(own.iter().flatten().copied()).chain(nothing());
    let smallest = words.iter().map(|word| !word).chain(inverted).chain(nothing());
    let mut both: Vec<u64> = largest.chain(smallest).collect();
    communicator.all_reduce(&mut both, Reduce::Max)?;
    let (most, least) = both.split_at(words.len() + WEIGHTS);
    let (mut most, mut least) = (most.to_vec(), least.iter().map(|word| !word).collect::<Vec<_>>());
    let rank = communicator.rank();
    let weights_differ = most.split_off(words.len()) > least.split_off(words.len());
    let of_manifest = least.pop() == most.pop();
    let (of_extent, of_plan) = (least.pop() == most.pop(), least == most);
    let verdict = match (of_plan, of_extent, of_manifest) {
        (false, ..) => Err(VerifyError::OtherPlan { rank, digest }),
        (true, false, _) => Err(VerifyError::OtherExtent { rank, full }),
        (true, true, false) => Err(VerifyError::OtherManifest { rank, given }),
        (true, true, true) if weights_differ => {
            others(own.as_deref(), communicator).and_then(|(first, ranks)| {
                Err(match given {
                    true => VerifyError::OtherSums { first, ranks },
                    false => VerifyError::OtherContents { first, ranks },
                })
            })
        }
        (true, true, true) => Ok(()),
    };
    if verdict.is_err() {
        // All know it once all are here. A rank that ended sooner would be what the others end with, in place of their own finding;
        // from here on nothing that happens to them matters.
        drop(communicator.all_reduce(&mut [0], Reduce::Max));
    }
    verdict
}

/// Limbs of what a rank says of its weights.
const WEIGHTS: usize = 4;

/// The first rank that says what its weights are, and those that say something else. Every rank calls it.
fn others(own: Option<&[u64]>, communicator: &mut dyn Communicator) -> Result<(u32, Vec<u32>), VerifyError> {
    let mut all = vec![[0; WEIGHTS]; communicator.world_size() as usize];
    if let Some(own) = own {
        all[communicator.rank() as usize].copy_from_slice(own);
    }
    communicator.all_reduce(all.as_flattened_mut(), Reduce::Sum)?;
    let mut said = (0u32..).zip(all).filter(|(_, said)| *said != [0; WEIGHTS]);
    let (first, of_first) = said.next().unwrap_or_default();
    Ok((first, said.filter(|(_, said)| *said != of_first).map(|(rank, _)| rank).collect()))
}

#[cfg(test)]
mod tests;
