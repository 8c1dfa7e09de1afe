//! Grouping tensors by collapsed name, dtype and shape.

use super::name_pattern::{NamePattern, collapse, factor};
use crate::checkpoint::{Catalog, Dtype};
use std::collections::BTreeMap;

/// Tensors that only differ in the numbers of their blocks.
#[derive(Debug, Clone)]
pub struct ParameterGroup {
    /// The module's name with `*` for each block number: `model.layers.*.self_attn.q_proj`.
    pub module: String,
    /// The last part of the name: `weight`, `bias`.
    pub parameter: String,
    /// dtype of each.
    pub dtype: Dtype,
    /// Shape of each.
    pub shape: Vec<u64>,
    /// Just the names, each once.
    pub names: Vec<NamePattern>,
    /// The block numbers of each tensor, in the order of the name; sorted.
    pub blocks: Vec<Vec<u32>>,
}

impl ParameterGroup {
    /// The collapsed name: module and parameter.
    pub fn collapsed(&self) -> String {
        match self.module.as_str() {
            "" => self.parameter.clone(),
            module => format!("{module}.{}", self.parameter),
        }
    }

    /// Bytes of one tensor of the group.
    pub fn bytes_each(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// Groups all tensors of `catalog`, sorted by collapsed name.
pub fn group_parameters(catalog: &Catalog) -> Vec<ParameterGroup> {
    type Alike<'a> = (String, Dtype, &'a [u64]);
    let mut groups: BTreeMap<Alike<'_>, Vec<Vec<u32>>> = BTreeMap::new();
    for tensor in catalog.tensors() {
        let (template, blocks) = collapse(&tensor.name);
        groups.entry((template, tensor.dtype, &tensor.shape)).or_default().push(blocks);
    }
    groups
        .into_iter()
        .map(|((template, dtype, shape), mut blocks)| {
            blocks.sort_unstable();
            let (module, parameter) = match template.rsplit_once('.') {
                Some((module, parameter)) => (module.to_owned(), parameter.to_owned()),
                None => (String::new(), template.clone()),
            };
            ParameterGroup {
                module,
                parameter,
                dtype,
                shape: shape.to_vec(),
                names: factor(&template, &blocks),
                blocks,
            }
        })
        .collect()
}
