//! Modules: the tensors that store one layer of a model, with repeated blocks collapsed.

use super::name_pattern::{NamePattern, collapse_into, factor};
use crate::checkpoint::{Catalog, Dtype};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Names of parameters that follow their module's name after a dot. `weight` and `bias` are everybody's; the others are
/// how quantised weights are stored.
const PARAMETERS: [&str; 21] = [
    "weight",
    "bias",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "weight_scale_ub",
    "input_global_scale",
    "input_scale",
    "input_zero_point",
    "activation_scale",
    "SCB",
    "weight_format",
];

/// Endings of parameters whose module's name comes before an underscore: `experts.gate_up_proj_blocks`.
const ENDINGS: [&str; 7] = ["_blocks", "_scales", "_bias", "_weight", "_scale_inv", "_scale", "_packed"];

/// Modules that only differ in the numbers of their blocks, and that are stored alike.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name with `*` for each number: `model.layers.*.self_attn.q_proj`.
    pub name: String,
    /// The numbers of each, in the order of the name; sorted.
    pub blocks: Vec<Vec<u32>>,
    /// The tensors that each is stored in, sorted by name.
    pub parameters: Vec<Parameter>,
}

/// A tensor of each of the modules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parameter {
    /// What follows the module's name, without a dot: `weight`, `qweight`, `_blocks`; empty where the tensor has the
    /// module's own name.
    pub name: String,
    /// The tensor's whole name, collapsed.
    pub collapsed: String,
    /// dtype of each.
    pub dtype: Dtype,
    /// Shape of each.
    pub shape: Vec<u64>,
}

impl Parameter {
    /// Whether it is a bias.
    pub fn is_bias(&self) -> bool {
        self.name == "bias" || self.name == "_bias"
    }

    /// Bytes of one.
    pub fn bytes_each(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

impl Module {
    /// How many modules there are.
    pub fn count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Bytes of one of the modules.
    pub fn bytes_each(&self) -> u64 {
        self.parameters.iter().map(Parameter::bytes_each).fold(0, u64::saturating_add)
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes_each().saturating_mul(self.count())
    }

    /// The name of what contains it: `model.layers.*.self_attn`.
    pub fn scope(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(scope, _)| scope)
    }

    /// The name of the innermost block that it is a part of, `model.layers.*`; empty outside of blocks.
    pub fn block(&self) -> &str {
        self.name.rfind('*').map_or("", |end| &self.name[..=end])
    }

    /// The last part of its name.
    pub fn last_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The parameter called `name`.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Just the names of all tensors of `parameter`.
    pub fn names(&self, parameter: &Parameter) -> Vec<NamePattern> {
        factor(&parameter.collapsed, &self.blocks)
    }
}

/// All modules of `catalog`, sorted by name; those of one name that are stored differently stand side by side.
pub fn modules(catalog: &Catalog) -> Vec<Module> {
    // Every tensor under its collapsed name.
    let mut by_template: HashMap<String, Vec<(Vec<u32>, usize)>> = HashMap::new();
    let (mut template, mut blocks) = (String::new(), Vec::new());
    for (number, tensor) in catalog.tensors().iter().enumerate() {
        collapse_into(&tensor.name, &mut template, &mut blocks);
        match by_template.get_mut(template.as_str()) {
            Some(tensors) => tensors.push((blocks.clone(), number)),
            None => {
                by_template.insert(template.clone(), vec![(blocks.clone(), number)]);
            }
        }
    }
    let templates: BTreeSet<&str> = by_template.keys().map(String::as_str).collect();
    let mut by_module: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for &template in &templates {
        let (module, parameter) = split(template, &templates);
        by_module.entry(module).or_default().push((parameter, template));
    }
    let mut all = Vec::with_capacity(by_module.len());
    for (name, parameters) in by_module {
        let tensors =
            parameters.iter().map(|&(parameter, template)| (parameter, template, &by_template[template]));
        all.extend(stored_alike(name, tensors, catalog));
    }
    all
}

/// Sorts the modules of one name by what they are stored in.
fn stored_alike<'a>(
    name: &str,
    parameters: impl Iterator<Item = (&'a str, &'a str, &'a Vec<(Vec<u32>, usize)>)>,
    catalog: &Catalog,
) -> Vec<Module> {
    // The kinds of tensor there are, and which of them each module has.
    let mut kinds: Vec<Parameter> = Vec::new();
    let mut of_blocks: HashMap<&[u32], Vec<usize>> = HashMap::new();
    for (parameter, template, tensors) in parameters {
        let mut known: BTreeMap<(Dtype, &[u64]), usize> = BTreeMap::new();
        for (blocks, number) in tensors {
            let tensor = &catalog.tensors()[*number];
            let kind = *known.entry((tensor.dtype, &tensor.shape)).or_insert_with(|| {
                kinds.push(Parameter {
                    name: parameter.to_owned(),
                    collapsed: template.to_owned(),
                    dtype: tensor.dtype,
                    shape: tensor.shape.to_vec(),
                });
                kinds.len() - 1
            });
            of_blocks.entry(blocks).or_default().push(kind);
        }
    }
    let mut alike: BTreeMap<Vec<usize>, Vec<Vec<u32>>> = BTreeMap::new();
    for (blocks, kinds) in of_blocks {
        alike.entry(kinds).or_default().push(blocks.to_vec());
    }
    let mut modules: Vec<Module> = alike
        .into_iter()
        .map(|(numbers, mut blocks)| {
            blocks.sort_unstable();
            let parameters = numbers.iter().map(|&kind| kinds[kind].clone()).collect();
            Module { name: name.to_owned(), blocks, parameters }
        })
        .collect();
    modules.sort_by(|a, b| a.blocks.cmp(&b.blocks));
    modules
}

/// The name of a module, or of the class that wraps it where that is what it goes by.
pub(crate) fn unwrapped(module: &str) -> &str {
    let wrapper = module.strip_suffix(".linear").or_else(|| module.strip_suffix(".base_layer"));
    wrapper.unwrap_or(module)
}

/// The module's name in the collapsed name of a tensor of a plan, whose parameters are known to be its own.
pub(crate) fn module_of(template: &str) -> &str {
    let (module, parameter) = split(template, &BTreeSet::new());
    let ending = ENDINGS.iter().find(|ending| parameter.is_empty() && module.ends_with(**ending));
    ending.map_or(module, |ending| &module[..module.len() - ending.len()])
}

/// A collapsed tensor name as the module's and the parameter's.
fn split<'a>(template: &'a str, templates: &BTreeSet<&str>) -> (&'a str, &'a str) {
    let Some((parent, last)) = template.rsplit_once('.') else { return (template, "") };
    if PARAMETERS.contains(&last) {
        return (parent, last);
    }
    // What belongs to a weight: `weight.absmax`, `weight.quant_state.bitsandbytes__nf4`.
    if let Some((module, rest)) = template.rsplit_once(".weight.")
        && !rest.is_empty()
    {
        return (module, &template[module.len() + 1..]);
    }
    for ending in ENDINGS {
        let Some(base) = template.strip_suffix(ending) else { continue };
        let stands_for_itself = last.len() == ending.len();
        // The weight itself, or another tensor that belongs to it.
        let mut siblings = ENDINGS.iter().filter(|other| **other != ending).chain(&[""]);
        if !stands_for_itself && siblings.any(|other| templates.contains(format!("{base}{other}").as_str())) {
            return (base, ending);
        }
    }
    (template, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(templates: &[&str]) -> Vec<(String, String)> {
        let all: BTreeSet<&str> = templates.iter().copied().collect();
        templates
            .iter()
            .map(|template| split(template, &all))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect()
    }

    fn part(template: &str) -> (String, String) {
        parts(&[template]).swap_remove(0)
    }

    #[test]
    fn a_tensors_name_ends_with_its_parameters() {
        let named = |module: &str, parameter: &str| (module.to_owned(), parameter.to_owned());
        assert_eq!(part("l.*.q_proj.qweight"), named("l.*.q_proj", "qweight"));
        assert_eq!(part("l.*.mixer.A_log"), named("l.*.mixer.A_log", ""));
        assert_eq!(part("l.*.q.weight.absmax"), named("l.*.q", "weight.absmax"));
        let quantised = "l.*.q.weight.quant_state.bitsandbytes__nf4";
        assert_eq!(part(quantised), named("l.*.q", "weight.quant_state.bitsandbytes__nf4"));
        assert_eq!(part("weight"), named("weight", ""));
    }

    #[test]
    fn an_ending_belongs_to_its_module_where_the_module_has_more_tensors() {
        let experts = parts(&["e.gate_up_proj_blocks", "e.gate_up_proj_scales", "e.gate_up_proj_bias"]);
        assert!(experts.iter().all(|(module, _)| module == "e.gate_up_proj"), "{experts:?}");
        let plain = parts(&["e.down_proj", "e.down_proj_bias"]);
        assert_eq!(plain[0], ("e.down_proj".to_owned(), String::new()));
        assert_eq!(plain[1], ("e.down_proj".to_owned(), "_bias".to_owned()));
        // Alone it is a name like any other.
        assert_eq!(part("e.dt_bias"), ("e.dt_bias".to_owned(), String::new()));
        assert_eq!(part("e._bias"), ("e._bias".to_owned(), String::new()));
    }
}
