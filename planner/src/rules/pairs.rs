//! Whether what is cut is read as it is cut.
//!
//! A cut has two halves: modules whose outputs are cut, and the row-parallel one that reads these. A rule goes by the name of
//! one module and cannot see the other half, so the halves are looked for here: in the scope of the module
//! (`self_attn.q_proj`, `self_attn.o_proj`); for what finds none there, in the scope around it or in those inside; and last
//! beside it (`attention.self.query`, `attention.output.dense`). Half a cut is none: the module is held whole, which is right
//! for every model. What the user's own rules say stays as it is, with a warning.

use super::{fit::Fitted, role::Role};
use crate::graph::{Module, unwrapped};
use std::collections::BTreeMap;

/// Where halves are looked for: a scope, and how many units are dealt.
type Place<'a> = (&'a str, u64);

/// Whether a place has modules whose outputs are cut, and one that reads them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Halves {
    outputs: bool,
    inputs: bool,
}

/// Holds whole what is but half a cut. `otherwise` is what the family would have said of each module that the user's rules
/// decided; `None` for the others.
pub(super) fn complete_pairs(modules: &[Module], fitted: &mut [Fitted], otherwise: &[Option<Fitted>]) {
    // What is held whole for want of its other half may have been the other half of something else.
    while replicate_halves(modules, fitted, otherwise) {}
    let cut = halves(modules, fitted, scope, |_| true);
    for ((module, fitted), otherwise) in modules.iter().zip(fitted).zip(otherwise) {
        let Some(otherwise) = otherwise else { continue };
        if fitted.warning.is_some() || is_cut(fitted) || !is_cut(otherwise) {
            continue;
        }
        if units(otherwise).any(|units| cut.contains_key(&(scope(module), units))) {
            fitted.warning =
                Some("is held whole as your rules say, while others beside it are cut: each rank needs but its part of it".to_owned());
        }
    }
}

/// Holds whole what has no other half now; whether there was such a thing.
fn replicate_halves(modules: &[Module], fitted: &mut [Fitted], otherwise: &[Option<Fitted>]) -> bool {
    let near = halves(modules, fitted, scope, |_| true);
    let inside = halves(modules, fitted, around, |_| true);
    let of = |found: &BTreeMap<Place<'_>, Halves>, place| found.get(&place).copied().unwrap_or_default();
    let is_near = |number: usize, units: u64| {
        let module = &modules[number];
        let own = of(&near, (scope(module), units));
        let nested = [of(&near, (around(module), units)), of(&inside, (scope(module), units))];
        own.complete() || nested.iter().any(|other| own.with(*other).complete())
    };
    let far =
        halves(modules, fitted, around, |number| !units(&fitted[number]).all(|units| is_near(number, units)));
    let is_paired = |number: usize, units| {
        is_near(number, units) || of(&far, (around(&modules[number]), units)).complete()
    };
    let alone: Vec<usize> = (0..modules.len())
        .filter(|&number| !units(&fitted[number]).all(|units| is_paired(number, units)))
        .collect();
    let mut changed = false;
    for number in alone {
        let half = match fitted[number].role {
            Role::RowParallel => "what gives its inputs",
            _ => "what reads its outputs",
        };
        if otherwise[number].is_some() {
            let warning = format!("is cut as your rules say, but {half} is not cut alike");
            fitted[number].warning.get_or_insert(warning);
        } else {
            changed = true;
            replicate(&mut fitted[number], &format!("{half} is not cut alike"));
        }
    }
    changed
}

fn replicate(fitted: &mut Fitted, why: &str) {
    fitted.warning = Some(format!("is replicated: {why}"));
    fitted.reason.push_str(&format!(", but {why}: replicated"));
    fitted.role = Role::Replicated;
    fitted.split = None;
}

/// Which halves there are in the places of the modules that `counts` chooses by number.
fn halves<'a>(
    modules: &'a [Module],
    fitted: &[Fitted],
    place: impl Fn(&'a Module) -> &'a str,
    counts: impl Fn(usize) -> bool,
) -> BTreeMap<Place<'a>, Halves> {
    let mut found: BTreeMap<Place<'a>, Halves> = BTreeMap::new();
    for (number, (module, fitted)) in modules.iter().zip(fitted).enumerate() {
        for units in units(fitted).filter(|_| counts(number)) {
            let halves = found.entry((place(module), units)).or_default();
            match fitted.role {
                Role::RowParallel => halves.inputs = true,
                _ => halves.outputs = true,
            }
        }
    }
    found
}

impl Halves {
    fn with(self, other: Self) -> Self {
        Self { outputs: self.outputs || other.outputs, inputs: self.inputs || other.inputs }
    }

    fn complete(self) -> bool {
        self.outputs && self.inputs
    }
}

/// Whether it is cut inside of a block; what is cut by the vocabulary is summed or gathered at once.
fn is_cut(fitted: &Fitted) -> bool {
    units(fitted).next().is_some()
}

/// The units of the dimensions that are cut inside of a block.
fn units(fitted: &Fitted) -> impl Iterator<Item = u64> {
    let inner = !matches!(fitted.role, Role::VocabParallelEmbedding | Role::VocabParallelHead);
    let dimensions = fitted.split.iter().flat_map(|(_, dimensions)| dimensions);
    dimensions.filter(move |_| inner).map(|dimension| dimension.units)
}

/// The module's scope; of a linear layer that another class wraps, the wrapper's.
fn scope(module: &Module) -> &str {
    parent(unwrapped(&module.name))
}

/// The scope around the module's.
fn around(module: &Module) -> &str {
    parent(scope(module))
}

fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(scope, _)| scope)
}
