//! LoRA adapters: cut to match the plan of their base model.
//!
//! In come an adapter's catalog and the base's plan; out comes a plan for the adapter, with the mesh, ranks and stages of the
//! base, which everything that takes a plan can use. A low-rank update of a module is `B · A`, with `A [r, in]` and
//! `B [out, r]`: where the module is cut on its outputs so is `B`, and where it is cut on its inputs so is `A`; the other is
//! held by every rank. The update is then a part of just the sum, or just the outputs, that the rank has of the module
//! (Hu et al. 2021; cut as S-LoRA and vLLM do). It does not know how the base was decided.

mod error;

pub use error::AdapterError;

use crate::{
    checkpoint::{Catalog, Dtype},
    cost::{check_fit, memory_per_rank},
    graph::{Module, NamePattern, Parameter, modules},
    partition::{Axis, Partition, Segment, Split, gcd},
    plan::{CastDtype, CheckpointIdentity, Plan, RankPlace, TensorGroup},
    rules::Role,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// The file that describes an adapter, in its folder.
pub const ADAPTER_CONFIG_NAME: &str = "adapter_config.json";

/// What stands before the names of the base model's modules in an adapter that PEFT wrote.
const PREFIX: &str = "base_model.model.";

/// What a tensor of an adapter is, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// `[r, in]`.
    A,
    /// `[out, r]`.
    B,
    /// `[out]`: added to the outputs, or one magnitude for each.
    Outputs { added: bool },
    /// `[r, rows]` of an embedding.
    EmbeddingA,
    /// `[hidden, r]` of an embedding.
    EmbeddingB,
    /// A whole weight in place of the base's.
    Replacement,
}

const ENDINGS: [(&str, Part); 9] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.bias", Part::Outputs { added: true }),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Outputs { added: false }),
    (".lora_magnitude_vector.weight", Part::Outputs { added: false }),
    (".weight", Part::Replacement),
    (".bias", Part::Replacement),
];

/// Plans the adapter whose tensors are `catalog`, which lies at `path`, for the model that `base` plans, to be loaded as `cast`
/// where that is given.
///
/// # Errors
/// [`AdapterError`] when it is no LoRA adapter, or not one for that model, or does not fit beside it.
pub fn plan_adapter(
    catalog: &Catalog,
    path: &Path,
    base: &Plan,
    cast: Option<CastDtype>,
) -> Result<Plan, AdapterError> {
    let config = read_config(&catalog.folder().join(ADAPTER_CONFIG_NAME))?;
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return Err(AdapterError::OtherType { found: other.unwrap_or("nothing").to_owned() }),
    }
    let base_modules = BaseModules::of(base);
    let mut tensors = Vec::new();
    let mut ranks: BTreeMap<(String, Vec<u32>), u64> = BTreeMap::new();
    for module in modules(catalog) {
        for parameter in &module.parameters {
            let (target, part) = target(&parameter.collapsed)
                .ok_or_else(|| AdapterError::NotUnderstood { tensor: parameter.collapsed.clone() })?;
            check_rank(&target, part, parameter, &module.blocks, &mut ranks)?;
            for (number, blocks) in base_modules.groups_of(&target, &module, &parameter.collapsed)? {
                let of_base = &base_modules.groups[number];
                let alike = Module { blocks, ..module.clone() };
                tensors.push(TensorGroup {
                    names: alike.names(parameter),
                    dtype: parameter.dtype,
                    cast: cast.filter(|cast| cast.is_cast_of(parameter.dtype)),
                    shape: parameter.shape.clone(),
                    role: of_base[0].role,
                    stage: of_base[0].stage,
                    outputs: None,
                    partition: partition(part, parameter, of_base)?,
                    why: format!("adapter: as its base module {target}, which is {}", of_base[0].role),
                });
            }
        }
    }
    let mut plan = Plan {
        checkpoint: CheckpointIdentity::of(catalog, path),
        ranks: beside(base)?,
        tensors,
        warnings: Vec::new(),
        ..base.clone()
    };
    plan.model.quantised = None;
    plan.check()?;
    check_fit(&plan)?;
    Ok(plan)
}

/// The ranks of the base, with the memory that it leaves.
fn beside(base: &Plan) -> Result<Vec<RankPlace>, AdapterError> {
    let uses = memory_per_rank(base)?;
    let all: u64 = uses.iter().map(|used| used.weights).fold(0, u64::saturating_add);
    let ranks = base.ranks.iter().zip(uses).map(|(place, used)| {
        let taken = if place.memory_pool.is_some() { all } else { used.weights };
        RankPlace { memory_bytes: place.memory_bytes.saturating_sub(taken), ..place.clone() }
    });
    Ok(ranks.collect())
}

fn read_config(path: &Path) -> Result<serde_json::Map<String, Value>, AdapterError> {
    crate::model::read_object(path).map_err(AdapterError::Config)
}

/// The base module that a tensor of an adapter belongs to, and what the tensor is.
fn target(collapsed: &str) -> Option<(String, Part)> {
    let name = collapsed.strip_prefix(PREFIX).unwrap_or(collapsed);
    let (ending, part) = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending))?;
    let module = name.strip_suffix(ending)?;
    Some((module.replace(".modules_to_save.default", "").replace(".base_layer", ""), *part))
}

/// The numbers in the names of some modules.
type Blocks = Vec<Vec<u32>>;

/// The modules of a plan, as the groups of tensors that each is stored in.
struct BaseModules<'a> {
    groups: Vec<Vec<&'a TensorGroup>>,
    /// The groups of each collapsed module name; several where modules of one name are stored differently.
    by_name: HashMap<String, Vec<usize>>,
}

impl<'a> BaseModules<'a> {
    fn of(base: &'a Plan) -> Self {
        let mut all = Self { groups: Vec::new(), by_name: HashMap::new() };
        let mut seen: HashMap<(String, Vec<u32>), usize> = HashMap::new();
        for group in &base.tensors {
            let collapsed = group.collapsed();
            let module = crate::graph::module_of(&collapsed).to_owned();
            let first = group.names.first().and_then(NamePattern::first).unwrap_or_default();
            let number = *seen.entry((module.clone(), first)).or_insert_with(|| {
                all.groups.push(Vec::new());
                all.by_name.entry(module).or_default().push(all.groups.len() - 1);
                all.groups.len() - 1
            });
            all.groups[number].push(group);
        }
        all
    }

    /// For the blocks of `module`, the base's groups that the modules called `target` with the same numbers are stored in.
    fn groups_of(
        &self,
        target: &str,
        module: &Module,
        tensor: &str,
    ) -> Result<Vec<(usize, Blocks)>, AdapterError> {
        let missing = || AdapterError::NoSuchModule { tensor: tensor.to_owned(), module: target.to_owned() };
        let candidates = self.by_name.get(target).ok_or_else(missing)?;
        let mut found: BTreeMap<usize, Blocks> = BTreeMap::new();
        for block in &module.blocks {
            let has = |number: &&usize| self.groups[**number][0].names.iter().any(|names| names.has(block));
            let number = candidates.iter().find(has).ok_or_else(missing)?;
            found.entry(*number).or_default().push(block.clone());
        }
        Ok(found.into_iter().collect())
    }
}

/// Checks that the low rank is the same in both matrices of one module; modules of other layers may have another.
fn check_rank(
    target: &str,
    part: Part,
    parameter: &Parameter,
    blocks: &Blocks,
    ranks: &mut BTreeMap<(String, Vec<u32>), u64>,
) -> Result<(), AdapterError> {
    let dim = match part {
        Part::A | Part::EmbeddingA => 0,
        Part::B | Part::EmbeddingB => 1,
        Part::Outputs { .. } | Part::Replacement => return Ok(()),
    };
    let wrong = || AdapterError::WrongShape {
        tensor: parameter.collapsed.clone(),
        found: parameter.shape.clone(),
        expected: "the low rank of its other matrix".to_owned(),
    };
    let (2, Some(&rank)) = (parameter.shape.len(), parameter.shape.get(dim)) else { return Err(wrong()) };
    for block in blocks {
        if ranks.insert((target.to_owned(), block.clone()), rank).is_some_and(|other| other != rank) {
            return Err(wrong());
        }
    }
    Ok(())
}

/// Checks a tensor against the sizes of its base, where that is stored plainly.
fn check_sizes(part: Part, parameter: &Parameter, base: &[&TensorGroup]) -> Result<(), AdapterError> {
    let wrong = |expected: String| AdapterError::WrongShape {
        tensor: parameter.collapsed.clone(),
        found: parameter.shape.clone(),
        expected,
    };
    let dim = match part {
        Part::A | Part::EmbeddingA => 1,
        Part::B | Part::EmbeddingB => 0,
        Part::Outputs { .. } if parameter.is_bias() && parameter.shape.len() != 1 => {
            return Err(wrong("one number for each output".to_owned()));
        }
        Part::Outputs { .. } => 0,
        Part::Replacement => return Ok(()),
    };
    let weight = base.iter().find(|group| {
        let plain = !matches!(group.dtype, Dtype::I32 | Dtype::I8 | Dtype::U8);
        plain && group.shape.len() == 2 && group.collapsed().ends_with(".weight")
    });
    let (Some(weight), Some(size)) = (weight, parameter.shape.get(dim)) else { return Ok(()) };
    // Which of the two a class stores first is its own affair.
    if weight.shape.contains(size) {
        return Ok(());
    }
    Err(wrong(format!("of a size in dimension {dim} that its base, {:?}, has", weight.shape)))
}

/// How ranks share a tensor of an adapter, whose base module is stored in `base`.
fn partition(part: Part, parameter: &Parameter, base: &[&TensorGroup]) -> Result<Partition, AdapterError> {
    if part == Part::Replacement {
        let same =
            |group: &&&TensorGroup| group.shape == parameter.shape && group.is_bias() == parameter.is_bias();
        return base.iter().find(same).map(|group| group.partition.clone()).ok_or_else(|| {
            AdapterError::WrongShape {
                tensor: parameter.collapsed.clone(),
                found: parameter.shape.clone(),
                expected: format!("that of its base, {:?}", base[0].shape),
            }
        });
    }
    check_sizes(part, parameter, base)?;
    let by_experts =
        |partition: &Partition| matches!(partition, Partition::Split(split) if split.axis == Axis::Expert);
    if base.iter().any(|group| by_experts(&group.partition)) {
        return Err(AdapterError::WholeExperts { tensor: parameter.collapsed.clone() });
    }
    // Of all tensors that are cut with the module, the one with the finest pieces.
    let splits = base.iter().filter_map(|group| match &group.partition {
        Partition::Split(split) => Some((group, split)),
        _ => None,
    });
    let Some((group, split)) = splits.max_by_key(|(group, split)| group.shape[split.dim]) else {
        let assigned = base.iter().find(|group| matches!(group.partition, Partition::Assigned(_)));
        return Ok(assigned.map_or(Partition::Replicated, |group| group.partition.clone()));
    };
    let on_inputs = group.role == Role::RowParallel;
    let dim = match part {
        Part::A if on_inputs => 1,
        Part::B | Part::Outputs { .. } if !on_inputs && group.role != Role::VocabParallelEmbedding => 0,
        Part::EmbeddingA => 1,
        Part::Outputs { added: true } if on_inputs => return Ok(Partition::FirstRank),
        _ => return Ok(Partition::Replicated),
    };
    let (stored, len) = (group.shape[split.dim], parameter.shape.get(dim).copied().unwrap_or(0));
    let wrong = || AdapterError::WrongShape {
        tensor: parameter.collapsed.clone(),
        found: parameter.shape.clone(),
        expected: format!("a dimension {dim} that goes with {stored} in its base"),
    };
    let common = gcd(stored, len).max(1);
    let segments: Result<Vec<Segment>, _> =
        split.segments.iter().map(|segment| segment.in_stored(stored / common, len / common)).collect();
    let split = Split { dim, segments: segments.map_err(|_| wrong())?, ..split.clone() };
    split.check(&parameter.shape).map_err(|_| wrong())?;
    Ok(Partition::Split(split))
}
