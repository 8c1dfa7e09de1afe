//! From a rank's slices to the engine's tensors.

use super::{
    EngineError, EngineNames,
    document::{Cut, NamedCut, Weight},
};
use crate::{
    checkpoint::Dtype,
    graph::collapse,
    mesh::Mesh,
    partition::{Partition, Remainder, Segment, Split},
    plan::{Plan, TensorGroup},
};
use std::{collections::BTreeMap, num::NonZero};

/// A slice that a rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSlice<'a> {
    /// Its tensor's name in the checkpoint.
    pub name: &'a str,
    /// Its dtype, as it is loaded.
    pub dtype: Dtype,
    /// Its shape, padding included.
    pub shape: &'a [u64],
}

/// One of the engine's tensors, as a rank holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineTensor {
    /// The engine's name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// What it consists of.
    pub content: EngineContent,
}

/// What one of the engine's tensors consists of.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineContent {
    /// Slices of the rank, one after the other.
    Slices(Vec<usize>),
    /// A number.
    Constant(f32),
}

/// The slices that make up one of the engine's tensors: each with its number, where they are stacked, and its place in the order of
/// what is fused.
type Pieces<'a> = Vec<(Option<u32>, usize, usize, &'a Weight)>;

impl EngineNames {
    /// The plan of what the engine's ranks hold, which differs from `plan` in little: biases that one rank adds are on every rank, and
    /// vocabularies are filled up as the engine does it.
    ///
    /// # Errors
    /// [`EngineError`] when the engine cuts otherwise than the plan, or nobody knows how.
    pub fn adapted(&self, plan: &Plan) -> Result<Plan, EngineError> {
        let unproven =
            |what: &str| EngineError::Layout { engine: self.engine.clone(), what: what.to_owned() };
        if let Some(how) = &plan.model.quantised {
            let Some(known) = self.quantised.iter().find(|known| known.how == *how) else {
                return Err(unproven(&format!("weights that are {how}")));
            };
            let tried = [known.dtype, Dtype::BF16, Dtype::F16, Dtype::F32];
            if let Some(group) = plan.tensors.iter().find(|group| !tried.contains(&group.dtype)) {
                return Err(unproven(&format!("weights that are {how}, as {}", group.dtype)));
            }
        }
        if plan.mesh.pp() > 1 {
            return Err(unproven("pipeline stages"));
        }
        if plan.mesh.dp() > 1 {
            return Err(unproven("data-parallel copies"));
        }
        if !plan.weights.is_empty() {
            return Err(unproven("unequal shares"));
        }
        let mut adapted = plan.clone();
        for group in &mut adapted.tensors {
            let weight = self.weight_of(group)?;
            group.partition = self.partition(plan.mesh, group, weight)?;
        }
        Ok(adapted)
    }

    fn weight_of(&self, group: &TensorGroup) -> Result<&Weight, EngineError> {
        let tensor = group.collapsed();
        let weight = self.weights.iter().find(|weight| weight.from.contains(&tensor));
        weight.ok_or_else(|| EngineError::UnknownTensor { engine: self.engine.clone(), tensor })
    }

    /// How the engine's ranks share the tensors of `group`.
    fn partition(&self, mesh: Mesh, group: &TensorGroup, weight: &Weight) -> Result<Partition, EngineError> {
        let expected = match weight.cut {
            None => "whole on every rank".to_owned(),
            Some(Cut::Dim(dim)) => format!("cut evenly along dimension {dim}"),
            Some(Cut::Named(NamedCut::Vocabulary)) => "cut along the vocabulary".to_owned(),
        };
        let other = |found: &str| EngineError::OtherCut {
            engine: self.engine.clone(),
            tensor: group.collapsed(),
            expected: expected.clone(),
            found: found.to_owned(),
        };
        match (weight.cut, &group.partition) {
            (None, Partition::Replicated | Partition::FirstRank) => Ok(Partition::Replicated),
            // One rank has all of everything.
            (Some(Cut::Dim(_)), partition @ Partition::Replicated) if mesh.tp() == 1 => Ok(partition.clone()),
            // Whole experts: the engine has those of the rank.
            (Some(Cut::Dim(_)), partition @ Partition::Assigned(_)) if is_stacked(weight, group) => {
                Ok(partition.clone())
            }
            (Some(Cut::Dim(dim)), Partition::Split(split)) if split.dim == dim => match split.remainder {
                Remainder::Refuse if !follow(&split.segments, weight.segments) => {
                    Err(other("in other segments"))
                }
                Remainder::Refuse => Ok(group.partition.clone()),
                Remainder::Uneven | Remainder::Pad => Err(other("unevenly")),
            },
            (
                Some(Cut::Named(NamedCut::Vocabulary)),
                partition @ (Partition::Split(_) | Partition::Replicated),
            ) => {
                let (tp, multiple) = (mesh.tp(), self.vocabulary_multiple.get());
                let each = NonZero::new(multiple / tp).filter(|_| multiple.is_multiple_of(tp));
                let each = each.ok_or_else(|| EngineError::Layout {
                    engine: self.engine.clone(),
                    what: format!("a vocabulary on {tp} ranks"),
                })?;
                match partition {
                    Partition::Split(split) if split.dim == 0 && split.segments.len() == 1 => {
                        let (remainder, multiple) = (Remainder::Pad, Some(each));
                        Ok(Partition::Split(Split { remainder, multiple, ..split.clone() }))
                    }
                    Partition::Replicated if tp == 1 => Ok(partition.clone()),
                    _ => Err(other("otherwise")),
                }
            }
            (_, Partition::Replicated) => Err(other("holds it whole on every rank")),
            (_, Partition::FirstRank) => Err(other("holds it on one rank")),
            (_, Partition::Split(split)) => Err(other(&format!("cuts it along dimension {}", split.dim))),
            (_, Partition::Assigned(_)) => Err(other("deals it whole")),
        }
    }

    /// The engine's tensors on `rank`, which holds `held` by the [adapted](Self::adapted) `plan`: in the order in which the first slice of
    /// each comes. Every slice is in one of them, all of it.
    ///
    /// # Errors
    /// [`EngineError::Incomplete`] when slices do not make up a tensor.
    pub fn tensors(
        &self,
        plan: &Plan,
        rank: u32,
        held: &[HeldSlice<'_>],
    ) -> Result<Vec<EngineTensor>, EngineError> {
        let has_head = held.iter().any(|slice| slice.name == "lm_head.weight");
        // A head that is nowhere is the embedding, whether the configuration says so or the family's default.
        let is_tied = plan.model.tied_embeddings || !has_head;
        if plan.model.tied_embeddings && has_head {
            let what = "an output head that is stored though it is the embedding".to_owned();
            return Err(EngineError::Layout { engine: self.engine.clone(), what });
        }
        let mut wanted: BTreeMap<String, Pieces<'_>> = BTreeMap::new();
        for (place, slice) in held.iter().enumerate() {
            let (template, numbers) = collapse(slice.name);
            let of = |weight: &&Weight| weight.from.contains(&template);
            let Some(weight) = self.weights.iter().find(of) else {
                let (engine, tensor) = (self.engine.clone(), slice.name.to_owned());
                return Err(EngineError::UnknownTensor { engine, tensor });
            };
            let order = weight.from.iter().position(|from| *from == template).unwrap_or(0);
            let is_tied = is_tied && weight.cut == Some(Cut::Named(NamedCut::Vocabulary));
            let (name, left) = match &self.tied {
                Some(tied) if is_tied => (tied.clone(), &numbers[..0]),
                _ => filled(&weight.into, &numbers),
            };
            wanted.entry(name).or_default().push((left.first().copied(), order, place, weight));
        }
        let mut tensors = Vec::with_capacity(wanted.len());
        for (name, mut pieces) in wanted {
            pieces.sort_by_key(|(number, order, ..)| (*number, *order));
            let first = pieces.iter().map(|(_, _, place, _)| *place).min().unwrap_or(0);
            tensors.push((first, tensor(rank, name, &pieces, held)?));
        }
        tensors.sort_by_key(|(first, _)| *first);
        let layers = plan.stages.iter().flat_map(|stage| stage.start..stage.stop);
        let how = plan.model.quantised.as_ref();
        let quantised = self.quantised.iter().filter(|known| Some(&known.how) == how);
        let constants: Vec<_> =
            self.constants.iter().chain(quantised.flat_map(|known| &known.constants)).collect();
        let constants = layers.flat_map(|layer| {
            constants.iter().map(move |constant| EngineTensor {
                name: constant.name.replacen('*', &layer.to_string(), 1),
                dtype: Dtype::F32,
                shape: constant.shape.clone(),
                content: EngineContent::Constant(constant.value),
            })
        });
        Ok(constants.chain(tensors.into_iter().map(|(_, tensor)| tensor)).collect())
    }

    /// What the engine calls the file `part`, counted from 0, of a rank of the tensor-parallel group.
    pub fn file_name(&self, rank: u32, part: usize) -> String {
        format!("model-rank-{rank}-part-{part}.safetensors")
    }
}

/// Whether a tensor that is cut into `segments` consists of `count` parts as engines fuse them: two alike, or one and others that are alike.
fn follow(segments: &[Segment], count: usize) -> bool {
    let mut sizes = segments.iter().map(|segment| segment.len());
    let first = sizes.next();
    let rest: Vec<u64> = sizes.collect();
    segments.len() == count
        && rest.windows(2).all(|pair| pair[0] == pair[1])
        && (count != 2 || first == rest.first().copied())
}

/// Whether tensors of `group` are stacked.
fn is_stacked(weight: &Weight, group: &TensorGroup) -> bool {
    let stars = |text: &str| text.split('.').filter(|part| *part == "*").count();
    stars(&weight.into) < stars(&group.collapsed())
}

/// The name `into` with these numbers, and those that are left over.
fn filled<'a>(into: &str, numbers: &'a [u32]) -> (String, &'a [u32]) {
    let mut left = numbers;
    let mut name = String::with_capacity(into.len());
    for (place, part) in into.split('.').enumerate() {
        if place > 0 {
            name.push('.');
        }
        match (part, left.split_first()) {
            ("*", Some((number, rest))) => {
                name.push_str(&number.to_string());
                left = rest;
            }
            _ => name.push_str(part),
        }
    }
    (name, left)
}

/// The tensor that `pieces` make up, which are in order.
fn tensor(
    rank: u32,
    name: String,
    pieces: &Pieces<'_>,
    held: &[HeldSlice<'_>],
) -> Result<EngineTensor, EngineError> {
    let incomplete = |reason: String| EngineError::Incomplete { rank, tensor: name.clone(), reason };
    let Some(&(number, _, first, weight)) = pieces.first() else {
        return Err(incomplete("it has no parts".to_owned()));
    };
    let (dtype, fused) = (held[first].dtype, weight.from.len());
    let is_stacked = number.is_some();
    let missing = pieces.chunks(fused).find(|chunk| {
        chunk.iter().map(|(_, order, ..)| *order).ne(0..fused) || chunk[0].0 != chunk[chunk.len() - 1].0
    });
    if missing.is_some() {
        return Err(incomplete(format!("it wants all of {}", weight.from.join(", "))));
    }
    let trailing = |place: usize| held[place].shape.get(1..).unwrap_or_default();
    let mut slices = Vec::with_capacity(pieces.len());
    let mut rows = 0u64;
    for &(_, _, place, _) in pieces {
        let slice = &held[place];
        if slice.dtype != dtype || trailing(place) != trailing(first) {
            return Err(incomplete(format!(
                "{} is {} {:?}, and {} is {} {:?}",
                held[first].name, dtype, held[first].shape, slice.name, slice.dtype, slice.shape
            )));
        }
        let own = slice.shape.first().copied().unwrap_or(1);
        slices.push(place);
        rows += own;
    }
    let mut shape = held[first].shape.to_vec();
    let stacked = (pieces.len() / fused) as u64;
    if let Some(first) = shape.first_mut() {
        *first = rows / stacked;
    }
    if is_stacked {
        shape.insert(0, stacked);
    }
    Ok(EngineTensor { name, dtype, shape, content: EngineContent::Slices(slices) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> EngineNames {
        crate::yaml::from_str(text).unwrap()
    }

    const FUSED: &str = "
engine: some
tested: []
model_types: [m]
vocabulary_multiple: 64
weights:
  - {from: [l.*.q.weight, l.*.k.weight], into: l.*.qk.weight, cut: 0}
  - {from: [l.*.e.*.a.weight, l.*.e.*.b.weight], into: l.*.ab_weight, cut: 0}
constants: [{name: l.*.scale, value: 0.5}]
";

    const PLAN: &str = "
shardwright_plan: 1
checkpoint: {path: somewhere, files: []}
model: {model_type: m, layers: 1, head_size: 2, tied_embeddings: false}
family: m
topology: host
mesh: {tp: 1, pp: 1, dp: 1}
stages: [{start: 0, stop: 1}]
ranks: [{rank: 0, gpu: gpu0, node: 0, device: 0, kind: host, memory_bytes: 1}]
tensors: []
";

    fn plan() -> Plan {
        Plan::from_yaml(PLAN).unwrap()
    }

    fn slice<'a>(name: &'a str, shape: &'a [u64]) -> HeldSlice<'a> {
        HeldSlice { name, dtype: Dtype::BF16, shape }
    }

    #[test]
    fn fused_parts_are_those_that_an_engine_cuts_one_by_one() {
        let segments =
            |sizes: &[u64]| sizes.iter().map(|&size| Segment::elements(size).unwrap()).collect::<Vec<_>>();
        let follows = |sizes: &[u64], count| follow(&segments(sizes), count);
        assert!(follows(&[8], 1) && follows(&[8, 8], 2) && follows(&[16, 4, 4], 3));
        // Gate and up in one, query and key in one, parts that are not alike.
        assert!(
            !follows(&[16], 2) && !follows(&[20, 4], 3) && !follows(&[12, 4], 2) && !follows(&[16, 6, 2], 3)
        );
        assert!(!follows(&[8, 8], 1));
    }

    #[test]
    fn weights_are_quantised_as_it_was_tried_or_refused() {
        let refused = |tried: &str, how: &str, dtype: Dtype| {
            let names = names(&format!("{FUSED}quantised: [{tried}]\n"));
            let mut plan = plan();
            plan.model.quantised = Some(how.to_owned());
            let group = "
{ names: [l.0.q.weight], dtype: F32, shape: [4, 8], role: replicated, stage: layer, partition: {whole: every-rank}, why: x }";
            let group: TensorGroup = crate::yaml::from_str(group).unwrap();
            plan.tensors = vec![TensorGroup { dtype, ..group }];
            names.adapted(&plan).err().map(|error| error.to_string())
        };
        let tried = "{how: eight bits, dtype: I8}";
        let refused_as = |tried, how, dtype| refused(tried, how, dtype).unwrap();
        assert!(refused_as("", "eight bits", Dtype::I8).contains("weights that are eight bits"));
        assert!(refused_as(tried, "four bits", Dtype::I8).contains("weights that are four bits"));
        assert!(
            refused_as(tried, "eight bits", Dtype::F8_E4M3)
                .contains("weights that are eight bits, as F8_E4M3")
        );
        // What comes next is no longer about how it is quantised.
        for dtype in [Dtype::I8, Dtype::BF16] {
            assert_eq!(
                refused(tried, "eight bits", dtype).filter(|error| error.contains("weights that are")),
                None
            );
        }
    }

    #[test]
    fn parts_follow_one_another_and_experts_are_stacked() {
        let held = [
            slice("l.0.k.weight", &[2, 8]),
            slice("l.0.q.weight", &[4, 8]),
            slice("l.0.e.1.b.weight", &[3, 8]),
            slice("l.0.e.1.a.weight", &[3, 8]),
            slice("l.0.e.0.a.weight", &[3, 8]),
            slice("l.0.e.0.b.weight", &[3, 8]),
        ];
        let tensors = names(FUSED).tensors(&plan(), 0, &held).unwrap();
        let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let slices = |name: &str| match &named(name).content {
            EngineContent::Slices(slices) => slices.clone(),
            EngineContent::Constant(_) => Vec::new(),
        };
        assert_eq!((&named("l.0.qk.weight").shape, slices("l.0.qk.weight")), (&vec![6, 8], vec![1, 0]));
        assert_eq!(
            (&named("l.0.ab_weight").shape, slices("l.0.ab_weight")),
            (&vec![2, 6, 8], vec![4, 5, 3, 2])
        );
        assert_eq!(named("l.0.scale").content, EngineContent::Constant(0.5));
    }

    #[test]
    fn what_does_not_make_up_a_tensor_is_named() {
        let refused =
            |held: &[HeldSlice<'_>]| names(FUSED).tensors(&plan(), 3, held).unwrap_err().to_string();
        assert!(
            refused(&[slice("l.0.q.weight", &[4, 8])])
                .contains("`l.0.qk.weight` of rank 3 cannot be put together")
        );
        let other = refused(&[slice("l.0.q.weight", &[4, 8]), slice("l.0.k.weight", &[4, 9])]);
        assert!(other.contains("[4, 9]"), "{other}");
        assert!(refused(&[slice("l.0.other.weight", &[1])]).contains("no known name for `l.0.other.weight`"));
        let experts = refused(&[slice("l.0.e.0.a.weight", &[3, 8]), slice("l.0.e.1.b.weight", &[3, 8])]);
        assert!(experts.contains("it wants all of"), "{experts}");
    }
}
