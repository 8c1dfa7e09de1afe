//! Whether the checkpoint has what its model needs.

use super::{decision::DecisionRequest, error::RuleError, family::Family, role::Role};
use crate::{
    graph::Module,
    model::{Measures, Vocabulary},
    quote::quote,
};
use std::collections::{BTreeMap, BTreeSet};

/// Most layers that a model may have; those of the largest have some hundreds.
const MAX_LAYERS: u64 = 1 << 16;

/// Checks that the tensors have the layers that the configuration counts, and gives how many there are.
pub(super) fn check_layers(request: &DecisionRequest<'_>, vocabulary: &Vocabulary) -> Result<u64, RuleError> {
    let DecisionRequest { modules, config, family, .. } = *request;
    let measures = Measures::new(vocabulary, config.text());
    let counted = measures.size("layers")?;
    let mut all: BTreeSet<u32> = BTreeSet::new();
    let mut of_names: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for module in modules.iter().filter(|module| family.is_in_layers(&module.name)) {
        let layers = module.blocks.iter().filter_map(|blocks| blocks.first().copied());
        // Where some layers are quantised and others not, only the modules are the same in all.
        match request.quantisation {
            Some(_) => of_names.entry(module.name.as_str()).or_default().extend(layers.clone()),
            None => {
                for parameter in &module.parameters {
                    of_names.entry(parameter.collapsed.as_str()).or_default().extend(layers.clone());
                }
            }
        }
        all.extend(layers);
    }
    let found = all.last().map_or(0, |&last| u64::from(last) + 1);
    if found > MAX_LAYERS {
        let found = format!("{} has layer {}", quote(family.layers()), found - 1);
        return Err(RuleError::WrongLayers { expected: counted.unwrap_or(all.len() as u64), found });
    }
    let Some(expected) = counted else {
        return if family.complete { Err(measures.missing("layers").into()) } else { Ok(found) };
    };
    if family.fallback {
        return Ok(found);
    }
    let wrong = |found: String| Err(RuleError::WrongLayers { expected, found });
    if all.is_empty() {
        return wrong(format!("no tensor lies in {}", quote(family.layers())));
    }
    // Layers that predict further tokens come after those that are counted.
    let beyond = measures.size("further layers").ok().flatten().unwrap_or(0);
    let names: Vec<(&str, BTreeSet<u32>)> = match family.complete {
        true => of_names.into_iter().collect(),
        false => vec![(family.layers(), all)],
    };
    for (name, layers) in names {
        if let Some(beyond) =
            layers.iter().find(|&&layer| u64::from(layer) >= expected.saturating_add(beyond))
        {
            return wrong(format!("{} has layer {beyond}", quote(name)));
        }
        let missing = (0..expected).find(|&layer| u32::try_from(layer).is_ok_and(|l| !layers.contains(&l)));
        if let Some(missing) = missing {
            return wrong(format!("{} lacks layer {missing}", quote(name)));
        }
    }
    Ok(found)
}

/// Checks that the checkpoint has the modules without which the family's models do not run.
pub(super) fn check_complete(modules: &[Module], family: &Family) -> Result<(), RuleError> {
    if !family.complete {
        return Ok(());
    }
    let used: BTreeSet<usize> = modules
        .iter()
        .filter_map(|module| family.rules_for(&module.name).next())
        .map(|(order, _, _)| order)
        .collect();
    for (order, glob, rule) in family.rules() {
        // A head may be the embedding, and what has no dimensions may be left out of files.
        let optional = rule.role == Role::VocabParallelHead || rule.dimensions.is_empty();
        if !optional && !used.contains(&order) {
            let (family, module) = (family.name.clone(), glob.to_owned());
            return Err(RuleError::MissingModule { family, module });
        }
    }
    Ok(())
}
