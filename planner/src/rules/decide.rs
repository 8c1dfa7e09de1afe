//! Deciding every module of a checkpoint: the user's rules, then the family's, then the tensor graph.

use super::{
    divide,
    error::RuleError,
    family::Family,
    fit::{Fitted, Misfit, fit},
    infer,
    role::{Role, StageRule},
    spaces::{Spaces, Whole},
    user::UserRules,
};
use crate::{
    graph::{Matrix, Module, TensorGraph},
    model::{Config, Measures, Vocabulary},
    partition::{Assigned, Axis, Logical, LogicalPartition, Partition, Remainder, Segment, Shares, Storage},
    quantisation::{Orientation, Quantisation, Stored, stored},
    quote::quote,
};
use std::collections::{BTreeMap, BTreeSet};

/// What was decided for a module.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What it is for.
    pub role: Role,
    /// How ranks share each of its tensors, in the order of [`Module::parameters`].
    pub partitions: Vec<Partition>,
    /// Which pipeline stages hold them.
    pub stage: StageRule,
    /// Which of its tensors it computes with, and its output features, where these go through a collective.
    pub outputs: Option<(usize, u64)>,
    /// Why, for `explain`.
    pub reason: String,
    /// What is odd about it, said of its tensors: `is replicated: …`.
    pub warning: Option<String>,
}

/// What decisions are made of.
#[derive(Debug, Clone, Copy)]
pub struct DecisionRequest<'a> {
    /// Every module of the checkpoint.
    pub modules: &'a [Module],
    /// The model's configuration.
    pub config: &'a Config,
    /// How its weights are quantised, if they are.
    pub quantisation: Option<&'a Quantisation>,
    /// The family that knows the model.
    pub family: &'a Family,
    /// The user's own rules.
    pub user: &'a UserRules,
    /// The ranks of a tensor-parallel group.
    pub tp: &'a Shares,
    /// The ranks that share experts, where they hold whole ones.
    pub ep: Option<&'a Shares>,
    /// Deal what does not divide instead of refusing it.
    pub uneven: bool,
}

/// The decisions, and what they say of the model.
#[derive(Debug)]
pub struct Decisions {
    /// One for each module.
    pub of_modules: Vec<Decision>,
    /// Repeated layers of the model.
    pub layers: u64,
}

/// What one of several experts, stored one by one, goes by.
#[derive(Debug, Clone, Copy)]
struct ExpertNumber {
    number: usize,
    of: u64,
}

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
    replicate_what_stands_alone(modules, &mut fitted);

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
        of_modules.push(decision(module, fitted, *expert, partitions, request));
    }
    hold_tied_embedding_at_both_ends(&mut of_modules, request.config);
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
        stored: stored.unwrap_or_else(|| Stored {
            experts: None,
            out: 1,
            input: None,
            rest: Vec::new(),
            weight: None,
            storages: vec![None; module.parameters.len()],
            packing: None,
            uncuttable: None,
        }),
        split: None,
        stage: None,
        warning: matters.then(|| format!("is replicated: {reason}")),
        reason,
        guessed: true,
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

/// Fits `module` to the first of its rules that fits; `None` when there is none that must.
fn fit_by_rules(
    module: &Module,
    request: &DecisionRequest<'_>,
    vocabulary: &Vocabulary,
) -> Result<Option<Fitted>, RuleError> {
    let DecisionRequest { family, user, quantisation, .. } = *request;
    let measures = measures_of(module, request, vocabulary);
    if let Some((_, glob, rule)) = user.rule_for(&module.name) {
        let reason = format!("your rules: {glob} is {}", rule.text);
        return fit(module, rule, measures, quantisation, reason).map(Some).map_err(RuleError::misfit);
    }
    let mut first_misfit = None;
    for (_, glob, rule) in family.rules_for(&module.name) {
        let reason = format!("family {}: {glob} is {}", family.name, rule.text);
        match fit(module, rule, measures, quantisation, reason) {
            Ok(fitted) => return Ok(Some(Fitted { guessed: family.fallback, ..fitted })),
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

/// Guessed cuts whose other half was not found are no cuts: a reader whose outputs are read whole, a writer whose inputs
/// are.
fn replicate_what_stands_alone(modules: &[Module], fitted: &mut [Fitted]) {
    let block =
        |module: &Module| module.name.rfind('*').map_or(String::new(), |end| module.name[..=end].to_owned());
    let mut roles: BTreeMap<(String, String, u64), BTreeSet<bool>> = BTreeMap::new();
    let spaces_of = |module: &Module, fitted: &Fitted| -> Vec<(String, String, u64)> {
        let dimensions = fitted.split.iter().flat_map(|(_, dimensions)| dimensions);
        dimensions.map(|dimension| (block(module), dimension.space.clone(), dimension.units)).collect()
    };
    for (module, fitted) in modules.iter().zip(fitted.iter()) {
        for space in spaces_of(module, fitted) {
            roles.entry(space).or_default().insert(fitted.role == Role::RowParallel);
        }
    }
    for (module, fitted) in modules.iter().zip(fitted.iter_mut()) {
        let inner = matches!(fitted.role, Role::ColumnParallel | Role::RowParallel | Role::ShardedNorm);
        let paired = spaces_of(module, fitted)
            .iter()
            .all(|space| roles.get(space).is_some_and(|found| found.len() == 2));
        if fitted.guessed && inner && !paired {
            let half = if fitted.role == Role::RowParallel {
                "what gives its inputs"
            } else {
                "what reads its outputs"
            };
            fitted.warning = Some(format!("is replicated: {half} is not cut alike"));
            fitted.reason.push_str(&format!(", but {half} is not cut alike: replicated"));
            fitted.role = Role::Replicated;
            fitted.split = None;
        }
    }
}

/// For each module of one of several experts: which number in its name is the expert's, and how many there are.
fn expert_numbers(modules: &[Module], family: &Family) -> Vec<Option<ExpertNumber>> {
    let numbers: Vec<Option<usize>> =
        modules.iter().map(|module| family.expert_number(&module.name)).collect();
    // How many there are in each place where experts lie.
    let place = |module: &Module, number: usize| -> String {
        let parts: Vec<&str> = module.name.split('*').take(number + 1).collect();
        parts.join("*")
    };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (module, number) in modules.iter().zip(&numbers) {
        let Some(number) = *number else { continue };
        let last = module.blocks.iter().filter_map(|blocks| blocks.get(number)).max();
        let count = counts.entry(place(module, number)).or_default();
        *count = (*count).max(last.map_or(0, |last| u64::from(*last) + 1));
    }
    modules
        .iter()
        .zip(numbers)
        .map(|(module, number)| {
            number.map(|number| ExpertNumber { number, of: counts[&place(module, number)] })
        })
        .collect()
}

fn partitions_of(
    module: &Module,
    fitted: &Fitted,
    expert: Option<ExpertNumber>,
    spaces: &Spaces,
    request: &DecisionRequest<'_>,
) -> Result<Vec<Partition>, Whole> {
    let count = module.parameters.len();
    let remainder = if request.uneven { Remainder::Uneven } else { Remainder::Refuse };
    let project = |logical: &LogicalPartition| -> Option<Vec<Partition>> {
        let one = |storage: &Option<Storage>| match storage {
            Some(storage) => storage.project(logical),
            None => Ok(Partition::Replicated),
        };
        fitted.stored.storages.iter().map(one).collect::<Result<_, _>>().ok()
    };
    if request.ep.is_some() {
        if let Some(ExpertNumber { number, of }) = expert {
            let assigned = Assigned { number, of, remainder, axis: Axis::Expert };
            return Ok(vec![Partition::Assigned(assigned); count]);
        }
        if let Some(segment) = fitted.stored.experts.and_then(|experts| Segment::elements(experts).ok()) {
            let logical = LogicalPartition::Split {
                dim: Logical::Expert,
                segments: vec![segment],
                remainder,
                axis: Axis::Expert,
            };
            return Ok(project(&logical).unwrap_or(vec![Partition::Replicated; count]));
        }
    }
    let Some((dim, dimensions)) = &fitted.split else { return Ok(vec![Partition::Replicated; count]) };
    let is_vocabulary = matches!(fitted.role, Role::VocabParallelEmbedding | Role::VocabParallelHead);
    let logical = LogicalPartition::Split {
        dim: *dim,
        segments: spaces.segments(module, dimensions)?,
        remainder: if is_vocabulary && dimensions.len() == 1 { Remainder::Pad } else { remainder },
        axis: Axis::Tensor,
    };
    project(&logical).ok_or_else(|| Whole {
        dimension: dimensions
            .first()
            .cloned()
            .unwrap_or_else(|| crate::model::Dimension::of_any_size("_", 1, 1)),
        together: u64::MAX,
    })
}

fn decision(
    module: &Module,
    fitted: &Fitted,
    expert: Option<ExpertNumber>,
    partitions: Vec<Partition>,
    request: &DecisionRequest<'_>,
) -> Decision {
    let family = request.family;
    let stage = fitted.stage.unwrap_or(match fitted.role {
        _ if family.is_in_layers(&module.name) => StageRule::Layer,
        _ if family.is_before_layers(&module.name) => StageRule::First,
        Role::VocabParallelEmbedding => StageRule::First,
        Role::VocabParallelHead => StageRule::Last,
        _ => StageRule::Every,
    });
    let mut reason = fitted.reason.clone();
    if let Some(packing) = &fitted.stored.packing {
        reason.push_str(&format!("; stored as {packing}"));
    }
    let whole_experts = request.ep.is_some() && (expert.is_some() || fitted.stored.experts.is_some());
    if whole_experts {
        reason.push_str("; whole experts on each rank");
    }
    let mut warning = fitted.warning.clone();
    let held_once = partitions.contains(&Partition::FirstRank) && request.tp.parts() > 1;
    if held_once && warning.is_none() {
        let once =
            "is added once, after the sum over ranks: only rank 0 of each tensor-parallel group holds it";
        warning = Some(once.to_owned());
    }
    let communicates = !matches!(fitted.role, Role::Replicated | Role::ColumnParallel);
    let outputs = fitted.stored.weight.filter(|_| communicates).map(|weight| (weight, fitted.stored.out));
    Decision { role: fitted.role, partitions, stage, outputs, reason, warning }
}

/// An embedding without a head of its own is also the head: the last stage needs it too.
fn hold_tied_embedding_at_both_ends(decisions: &mut [Decision], config: &Config) {
    if decisions.iter().any(|decision| decision.role == Role::VocabParallelHead) {
        return;
    }
    let tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    for decision in decisions {
        if decision.role == Role::VocabParallelEmbedding && decision.stage == StageRule::First {
            decision.stage = StageRule::FirstAndLast;
            decision.reason.push_str("; there is no head of its own, so it is the head too");
            if tied == Some(false) {
                let doubt =
                    "is taken for the head too: there is no other, though config.json does not tie them";
                decision.warning = Some(doubt.to_owned());
            }
        }
    }
}

/// Checks that the tensors have the layers that the configuration counts, and gives how many there are.
fn check_layers(request: &DecisionRequest<'_>, vocabulary: &Vocabulary) -> Result<u64, RuleError> {
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
        if let Some(beyond) = layers.iter().find(|&&layer| u64::from(layer) >= expected + beyond) {
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
fn check_complete(modules: &[Module], family: &Family) -> Result<(), RuleError> {
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
