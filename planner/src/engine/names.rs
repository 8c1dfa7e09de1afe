//! From a rank's slices to the engine's tensors.

use super::{
    EngineError, EngineNames,
    document::{Cut, NamedCut, Weight},
};
use crate::{
    checkpoint::Dtype,
    graph::collapse,
    mesh::{Coordinates, Mesh},
    partition::{Partition, Remainder, Segment, Split},
    plan::{LayerRange, Plan, TensorGroup},
    rules::StageRule,
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
    /// The plan of what the engine's ranks hold, which differs from `plan` in little: biases that one rank adds are on every rank,
    /// vocabularies are filled up and layers cut into stages as the engine does it. `stages` are the layers of each, where the engine was
    /// told how many.
    ///
    /// # Errors
    /// [`EngineError`] when the engine cuts otherwise than the plan, or nobody knows how.
    pub fn adapted(&self, plan: &Plan, stages: Option<&[u64]>) -> Result<Plan, EngineError> {
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
        if plan.mesh.dp() > 1 {
            return Err(unproven("data-parallel copies"));
        }
        if !plan.weights.is_empty() {
            return Err(unproven("unequal shares"));
        }
        if let Some(experts) = plan.model.experts.filter(|experts| self.unproven_experts.contains(experts)) {
            return Err(unproven(&format!("{experts} experts")));
        }
        let mut adapted = plan.clone();
        adapted.stages = self.stages(plan, stages)?;
        for group in &mut adapted.tensors {
            let weight = self.weight_of(group)?;
            group.partition = self.partition(plan.mesh, group, weight)?;
            if weight.every_stage {
                group.stage = StageRule::Every;
            }
        }
        Ok(adapted)
    }

    /// The layers of the engine's pipeline stages.
    fn stages(&self, plan: &Plan, told: Option<&[u64]>) -> Result<Vec<LayerRange>, EngineError> {
        let (layers, pp) = (plan.model.layers, plan.mesh.pp());
        if pp == 1 {
            return Ok(plan.stages.clone());
        }
        let unproven = |what: String| EngineError::Layout { engine: self.engine.clone(), what };
        let rule = self.pipeline.ok_or_else(|| unproven("pipeline stages".to_owned()))?;
        let counts = told.map_or_else(|| rule.counts(layers, pp), <[u64]>::to_vec);
        let sum = counts.iter().copied().fold(0, u64::saturating_add);
        if sum != layers || counts.len() != pp as usize || counts.contains(&0) {
            return Err(unproven(format!("{layers} layers in stages of {counts:?}")));
        }
        let stops = counts.iter().scan(0, |stop, count| {
            *stop += count;
            Some(*stop)
        });
        Ok(stops.zip(&counts).map(|(stop, count)| LayerRange { start: stop - count, stop }).collect())
    }

    fn weight_of(&self, group: &TensorGroup) -> Result<&Weight, EngineError> {
        let tensor = group.collapsed();
        let weight = self.weights.iter().find(|weight| weight.from.contains(&tensor));
        weight.ok_or_else(|| EngineError::UnknownTensor { engine: self.engine.clone(), tensor })
    }

    /// How the engine's ranks share the tensors of `group`.
    fn partition(&self, mesh: Mesh, group: &TensorGroup, weight: &Weight) -> Result<Partition, EngineError> {
        let expected = match weight.cut {
            None | Some(Cut::Named(NamedCut::WholeVocabulary)) => "whole on every rank".to_owned(),
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
            (None, Partition::Replicated | Partition::FirstRank)
            | (Some(Cut::Named(NamedCut::WholeVocabulary)), Partition::Split(_) | Partition::Replicated) => {
                Ok(Partition::Replicated)
            }
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
        let stage = plan.mesh.coordinates(rank).pp;
        let is_head = |name: &str| name == "lm_head.weight";
        let has_head = held.iter().any(|slice| is_head(slice.name))
            || plan.tensors.iter().any(|group| is_head(&group.collapsed()));
        // A head that is nowhere is the embedding, whether the configuration says so or the family's default.
        let is_tied = plan.model.tied_embeddings || !has_head;
        if plan.model.tied_embeddings && has_head {
            let what = "an output head that is stored though it is the embedding".to_owned();
            return Err(EngineError::Layout { engine: self.engine.clone(), what });
        }
        let knows_head = self.weights.iter().flat_map(|weight| &weight.from).any(|from| is_head(from));
        if is_tied && knows_head && self.tied.is_none() {
            let what = "an output head that is the embedding".to_owned();
            return Err(EngineError::Layout { engine: self.engine.clone(), what });
        }
        let is_last_stage = stage + 1 == plan.mesh.pp();
        let mut wanted: BTreeMap<String, Pieces<'_>> = BTreeMap::new();
        for (place, slice) in held.iter().enumerate() {
            let (template, numbers) = collapse(slice.name);
            let of = |weight: &&Weight| weight.from.contains(&template);
            let Some(weight) = self.weights.iter().find(of) else {
                let (engine, tensor) = (self.engine.clone(), slice.name.to_owned());
                return Err(EngineError::UnknownTensor { engine, tensor });
            };
            let order = weight.from.iter().position(|from| *from == template).unwrap_or(0);
            // A stage that has no head has an embedding and nothing else.
            let is_tied =
                is_tied && (is_last_stage || weight.every_stage) && matches!(weight.cut, Some(Cut::Named(_)));
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
        let layers = plan.stages.get(stage as usize).into_iter().flat_map(|stage| stage.start..stage.stop);
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

    /// What the engine calls the file `part`, counted from 0, of `rank` of `mesh`.
    pub fn file_name(&self, mesh: Mesh, rank: u32, part: usize) -> String {
        let Coordinates { pp, tp, .. } = mesh.coordinates(rank);
        match mesh.pp() {
            1 => format!("model-rank-{tp}-part-{part}.safetensors"),
            _ => format!("model-pp-{pp}-tp-{tp}-part-{part}.safetensors"),
        }
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
            names.adapted(&plan, None).err().map(|error| error.to_string())
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
    fn stages_have_the_layers_that_the_engine_gives_them() {
        let names = names(&format!("{FUSED}pipeline: last-has-least\n"));
        let mut plan = plan();
        (plan.mesh, plan.model.layers) = (Mesh::new(1, 2, 2).unwrap(), 5);
        let cut = |told: Option<&[u64]>| {
            let adapted = names.adapted(&plan, told).map_err(|error| error.to_string())?;
            Ok::<_, String>(adapted.stages.iter().map(|stage| (stage.start, stage.stop)).collect::<Vec<_>>())
        };
        assert_eq!(cut(None).unwrap(), [(0, 3), (3, 5)]);
        assert_eq!(cut(Some(&[1, 4])).unwrap(), [(0, 1), (1, 5)]);
        for wrong in [&[5][..], &[2, 2], &[0, 5], &[1, 1, 3], &[u64::MAX, 6]] {
            assert!(cut(Some(wrong)).unwrap_err().contains("5 layers in stages of ["), "{wrong:?}");
        }
        let unknown = EngineNames { pipeline: None, ..names.clone() };
        assert!(unknown.adapted(&plan, None).unwrap_err().to_string().contains("pipeline stages"));

        // Rank 2 is the first of the second stage, which has its layers' constants and no others.
        let adapted = names.adapted(&plan, None).unwrap();
        let constants = names.tensors(&adapted, 2, &[]).unwrap();
        let constants: Vec<&str> = constants.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(constants, ["l.3.scale", "l.4.scale"]);
        assert_eq!(names.file_name(plan.mesh, 3, 0), "model-pp-1-tp-1-part-0.safetensors");
    }

    #[test]
    fn what_every_stage_has_is_on_every_stage() {
        let mut plan = plan();
        (plan.mesh, plan.model.layers) = (Mesh::new(1, 2, 1).unwrap(), 2);
        (plan.model.model_type, plan.model.tied_embeddings) = ("gemma3_text".to_owned(), true);
        let embedding = "
{ names: [model.embed_tokens.weight], dtype: F32, shape: [64, 8], role: vocab-parallel-embedding, stage: first-and-last,
  partition: {whole: every-rank}, why: x }";
        plan.tensors = vec![crate::yaml::from_str(embedding).unwrap()];
        let of_engine = |model_type: &str, rank: u32| {
            let names = EngineNames::of("vllm", model_type).unwrap();
            let adapted = names.adapted(&plan, None).unwrap();
            let held = [slice("model.embed_tokens.weight", &[64, 8])];
            let tensors = names.tensors(&adapted, rank, &held).unwrap();
            let tensors: Vec<String> = tensors
                .into_iter()
                .map(|tensor| tensor.name)
                .filter(|name| !name.contains("scale"))
                .collect();
            (adapted.tensors[0].stage, tensors)
        };
        let (own, head) = (vec!["model.embed_tokens.weight".to_owned()], vec!["lm_head.weight".to_owned()]);
        assert_eq!(of_engine("llama", 0), (StageRule::FirstAndLast, own));
        assert_eq!(of_engine("llama", 1), (StageRule::FirstAndLast, head.clone()));
        assert_eq!(of_engine("gemma3_text", 0), (StageRule::Every, head.clone()));
        assert_eq!(of_engine("gemma3_text", 1), (StageRule::Every, head));
    }

    #[test]
    fn an_embedding_is_whole_where_the_engine_does_not_cut_it() {
        let mut plan = Plan { mesh: Mesh::new(1, 1, 2).unwrap(), ..plan() };
        (plan.model.model_type, plan.model.tied_embeddings) = ("gemma3_text".to_owned(), true);
        let embedding = "
{ names: [model.embed_tokens.weight], dtype: F32, shape: [64, 8], role: vocab-parallel-embedding, stage: first-and-last,
  partition: {split: {dim: 0, segments: [{groups: 64}], remainder: pad}}, why: x }";
        plan.tensors = vec![crate::yaml::from_str(embedding).unwrap()];
        let partition = |engine: &str| {
            let names = EngineNames::of(engine, "gemma3_text").unwrap();
            names.adapted(&plan, None).unwrap().tensors[0].partition.clone()
        };
        assert_eq!(partition("sglang"), Partition::Replicated);
        assert!(matches!(partition("vllm"), Partition::Split(_)));
        let held = [slice("model.embed_tokens.weight", &[64, 8])];
        let tensors = EngineNames::of("sglang", "gemma3_text").unwrap().tensors(&plan, 1, &held).unwrap();
        assert_eq!((&*tensors[0].name, &*tensors[0].shape), ("lm_head.weight", &[64, 8][..]));
    }

    #[test]
    fn what_an_engine_holds_otherwise_is_refused() {
        let mut plan = plan();
        (plan.model.model_type, plan.model.experts) = ("deepseek_v3".to_owned(), Some(256));
        let names = EngineNames::of("sglang", "deepseek_v3").unwrap();
        let refused = |plan: &Plan| names.adapted(plan, None).err().map(|error| error.to_string());
        assert!(refused(&plan).unwrap().contains("how sglang holds 256 experts"));
        plan.model.experts = Some(64);
        assert_eq!(refused(&plan), None);
        // A head that is the embedding, where the engine has one that is not.
        plan.model.tied_embeddings = true;
        let tied = names.tensors(&plan, 0, &[]).unwrap_err().to_string();
        assert!(tied.contains("an output head that is the embedding"), "{tied}");
    }

    #[test]
    fn what_does_not_make_up_a_tensor_is_named() {
        let plan = Plan { mesh: Mesh::new(1, 1, 4).unwrap(), ..plan() };
        let refused = |held: &[HeldSlice<'_>]| names(FUSED).tensors(&plan, 3, held).unwrap_err().to_string();
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
