//! Deciding every module of a checkpoint: the user's rules, then the family's, then the tensor graph.

use super::{
    completeness::{check_complete, check_layers},
    decision::{DecisionRequest, Decisions},
    divide,
    error::RuleError,
    fit::{Fitted, Misfit, fit},
    infer,
    pairs::complete_pairs,
    project::{decision, expert_numbers, hold_tied_embedding_at_both_ends, partitions_of},
    role::Role,
    spaces::Spaces,
};
use crate::{
    graph::{Matrix, Module, TensorGraph},
    model::{Measures, Vocabulary},
    partition::Partition,
    quantisation::{Orientation, Quantisation, Stored, stored},
};

/// Decides every module.
///
/// # Errors
/// [`RuleError`] when the tensors contradict the configuration or each other, or modules do not divide by the ranks; all
/// modules that do not are named at once.
pub fn decide(request: &DecisionRequest<'_>) -> Result<Decisions, RuleError> {
    let DecisionRequest { modules, family, user, .. } = *request;
    let vocabulary = user.vocabulary(family.vocabulary())?;
    user.check_used(modules)?;
    let layers = check_layers(request, &vocabulary)?;
    check_complete(modules, family)?;
    let mut fitted = fit_all(request, &vocabulary)?;
    let otherwise = what_the_family_says(request, &vocabulary);
    complete_pairs(modules, &mut fitted, &otherwise);

    let mut spaces = Spaces::default();
    for (module, fitted) in modules.iter().zip(&fitted) {
        spaces.add(module, fitted);
    }
    let experts = expert_numbers(modules, family);
    let mut failures = Vec::new();
    let mut of_modules = Vec::with_capacity(modules.len());
    for ((module, fitted), expert) in modules.iter().zip(&fitted).zip(&experts) {
        let partitions = partitions_of(module, fitted, *expert, &spaces, request).unwrap_or_else(|whole| {
            failures.extend(divide::cannot_be_cut(module, fitted, &whole, request.tp));
            vec![Partition::Replicated; module.parameters.len()]
        });
        of_modules.push(decision(module, fitted, *expert, partitions, &spaces, request));
    }
    hold_tied_embedding_at_both_ends(&mut of_modules, request);
    divide::check(request, &fitted, &of_modules, failures, layers)?;
    Ok(Decisions { of_modules, layers })
}

/// What every module is stored as, taken as plain `[out, in]` where no rule says otherwise, and the graph they make.
pub fn tensor_graph(
    modules: &[Module],
    quantisation: Option<&Quantisation>,
    width: Option<u64>,
) -> (Vec<Option<Stored>>, TensorGraph) {
    let all: Vec<Option<Stored>> =
        modules.iter().map(|module| stored(module, quantisation, Orientation::default()).ok()).collect();
    let matrices: Vec<Option<Matrix>> = all
        .iter()
        .map(|stored| {
            let stored =
                stored.as_ref().filter(|stored| stored.rest.is_empty() && stored.uncuttable.is_none())?;
            Some(Matrix { out: stored.out, input: stored.input? })
        })
        .collect();
    let graph = TensorGraph::new(modules, &matrices, width);
    (all, graph)
}

/// Fits each module to the first rule that fits it; what no rule knows to the tensor graph.
fn fit_all(request: &DecisionRequest<'_>, vocabulary: &Vocabulary) -> Result<Vec<Fitted>, RuleError> {
    let DecisionRequest { modules, config, quantisation, .. } = *request;
    let mut all: Vec<Option<Fitted>> = Vec::with_capacity(modules.len());
    for module in modules {
        all.push(fit_by_rules(module, request, vocabulary)?);
    }
    let width = Measures::new(vocabulary, config.text()).size("hidden")?;
    let (stored_all, graph) = tensor_graph(modules, quantisation, width);
    for writer in (0..modules.len()).filter(|&number| graph.writes(number)) {
        let known = |number: &usize| all[*number].is_some();
        if known(&writer) || graph.producers(writer).iter().any(known) {
            continue;
        }
        let measures = measures_of(&modules[writer], request, vocabulary);
        for (number, inferred) in infer::pair(writer, modules, &stored_all, &graph, measures)? {
            all[number] = Some(inferred);
        }
    }
    Ok(all
        .into_iter()
        .zip(modules)
        .zip(stored_all)
        .map(|((found, module), stored)| {
            found.unwrap_or_else(|| replicated_for_want(module, stored, request))
        })
        .collect())
}

/// A module that neither a rule nor the graph knows is held whole.
fn replicated_for_want(module: &Module, stored: Option<Stored>, request: &DecisionRequest<'_>) -> Fitted {
    let family = request.family;
    let reason = format!("family {} has no rule for it, and the tensor graph no pair", family.name);
    // Of vectors and scalars a copy costs nothing worth a word.
    let matters = module.parameters.iter().any(|parameter| parameter.shape.len() > 1);
    Fitted {
        role: Role::Replicated,
        stored: stored.unwrap_or_else(|| Stored::whole(module, None)),
        split: None,
        kept: Vec::new(),
        stage: None,
        warning: matters.then(|| format!("is replicated: {reason}")),
        reason,
    }
}

fn measures_of<'a>(
    module: &Module,
    request: &DecisionRequest<'a>,
    vocabulary: &'a Vocabulary,
) -> Measures<'a> {
    let section = request.family.section_of(&module.name).and_then(|names| request.config.section(names));
    let section = section.unwrap_or_else(|| request.config.text());
    // Modules of layers that differ are stored in different shapes, so the first layer speaks for all.
    let layer = module.blocks.first().and_then(|blocks| blocks.first()).copied();
    let in_layers = request.family.is_in_layers(&module.name);
    Measures::new(vocabulary, layer.filter(|_| in_layers).map_or(section, |layer| section.of_layer(layer)))
}

/// What the family says of the modules that the user's rules decide; `None` for the others.
fn what_the_family_says(request: &DecisionRequest<'_>, vocabulary: &Vocabulary) -> Vec<Option<Fitted>> {
    let of_module = |module: &Module| {
        request.user.rule_for(&module.name)?;
        let found = fit_by_family(module, request, measures_of(module, request, vocabulary)).ok().flatten();
        Some(found.unwrap_or_else(|| replicated_for_want(module, None, request)))
    };
    request.modules.iter().map(of_module).collect()
}

/// Fits `module` to the first of its rules that fits; `None` when there is none that must.
fn fit_by_rules(
    module: &Module,
    request: &DecisionRequest<'_>,
    vocabulary: &Vocabulary,
) -> Result<Option<Fitted>, RuleError> {
    let DecisionRequest { family, user, quantisation, .. } = *request;
    let measures = measures_of(module, request, vocabulary);
    if let Some((place, glob, rule)) = user.rule_for(&module.name) {
        let reason = format!("your rules: {glob} is {}", rule.text);
        let fitted = fit(module, rule, measures, quantisation, reason)
            .map_err(|misfit| user.misfit(place, &module.name, misfit))?;
        let stage = fitted.stage.or_else(|| family.stage_of(&module.name));
        return Ok(Some(Fitted { stage, ..fitted }));
    }
    fit_by_family(module, request, measures)
}

/// Fits `module` to the first rule of the family that fits; `None` when there is none that must.
fn fit_by_family(
    module: &Module,
    request: &DecisionRequest<'_>,
    measures: Measures<'_>,
) -> Result<Option<Fitted>, RuleError> {
    let DecisionRequest { family, quantisation, .. } = *request;
    let mut first_misfit = None;
    for (_, glob, rule) in family.rules_for(&module.name) {
        // A common name does not tell in which order a fused module lies.
        let fused = rule.split().is_some_and(|(_, place)| rule.dimensions[place].len() > 1);
        if family.fallback && fused {
            continue;
        }
        let reason = format!("family {}: {glob} is {}", family.name, rule.text);
        match fit(module, rule, measures, quantisation, reason) {
            Ok(fitted) => return Ok(Some(fitted)),
            Err(misfit) => first_misfit = first_misfit.or(Some(misfit)),
        }
    }
    match first_misfit {
        Some(Misfit::Quantisation(error)) => Err(error.into()),
        // What is only called like something known need not be it.
        Some(misfit) if !family.fallback && (family.complete || family.is_in_layers(&module.name)) => {
            Err(RuleError::misfit(misfit))
        }
        _ => Ok(None),
    }
}
