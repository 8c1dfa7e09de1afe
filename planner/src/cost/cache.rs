//! What a model keeps of the tokens it has seen: keys and values, latents, states.
//!
//! In come the modules with their decisions, and the configuration; out goes for each layer how many elements the rank that keeps
//! most of them keeps. What a dimension keeps is data (`families/dimensions.yaml`); which layers look back on a window only is in
//! the configuration.

use crate::{
    graph::Module,
    model::{Config, ConfigError, Measures, Vocabulary},
    partition::Shares,
    rules::{Decision, StageRule},
};
use serde_json::Value;

/// What each layer of a model keeps, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cache {
    /// One for each repeated layer.
    pub layers: Vec<LayerCache>,
    /// Whether the tensors did not tell, and all layers were taken for attention with the heads that the configuration has.
    pub assumed: bool,
}

/// Elements that one layer keeps on the rank that keeps most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerCache {
    /// Of every token.
    pub per_token: u64,
    /// Of a sequence, however long it is.
    pub per_sequence: u64,
    /// How many tokens it looks back on, where not on all.
    pub window: Option<u64>,
}

impl LayerCache {
    /// Elements that it keeps of a sequence of `tokens` tokens, besides its state.
    pub fn elements(&self, tokens: u64) -> u64 {
        self.per_token.saturating_mul(self.window.map_or(tokens, |window| tokens.min(window)))
    }
}

/// How a model's modules are shared by the ranks of a tensor-parallel group.
pub struct Shared<'a> {
    /// The modules.
    pub modules: &'a [Module],
    /// A decision for each.
    pub decisions: &'a [Decision],
    /// Repeated layers.
    pub layers: u64,
    /// The ranks.
    pub tp: &'a Shares,
    /// Whether what does not divide was dealt all the same.
    pub uneven: bool,
}

impl Cache {
    /// What the layers of a model keep.
    ///
    /// # Errors
    /// [`ConfigError`] when the configuration contradicts itself.
    pub fn of(shared: &Shared<'_>, config: &Config, vocabulary: &Vocabulary) -> Result<Self, ConfigError> {
        // Bounded: every layer has tensors, the rules checked that.
        let mut layers = vec![LayerCache::default(); usize::try_from(shared.layers).unwrap_or(0)];
        let mut latents = vec![0; layers.len()];
        let in_layers = |decision: &&Decision| decision.stage == StageRule::Layer;
        for (module, decision) in shared.modules.iter().zip(shared.decisions).filter(|(_, d)| in_layers(d)) {
            for kept in &decision.work.kept {
                let pieces = kept.most_pieces(shared.tp, shared.uneven);
                for layer in module.blocks.iter().filter_map(|blocks| blocks.first()) {
                    let Some(of_layer) = layers.get_mut(*layer as usize) else { continue };
                    // Keys and values are two dimensions; a latent, or the state of a head, several modules may tell of.
                    of_layer.per_token =
                        of_layer.per_token.saturating_add(pieces.saturating_mul(kept.keeps.cache));
                    let state = pieces.saturating_mul(kept.keeps.state);
                    of_layer.per_sequence = of_layer.per_sequence.max(state);
                    latents[*layer as usize] = kept.keeps.latent.max(latents[*layer as usize]);
                }
            }
        }
        for (layer, latent) in layers.iter_mut().zip(latents) {
            layer.per_token = layer.per_token.saturating_add(latent);
        }
        let measures = Measures::new(vocabulary, config.text());
        let nothing = layers.iter().all(|layer| layer.per_token == 0 && layer.per_sequence == 0);
        let mut assumed = false;
        if let (true, Some(kv), Some(size)) = (nothing, measures.size("kv")?, measures.size("head size")?) {
            let heads = kv.div_ceil(u64::from(shared.tp.parts())).max(1);
            layers.iter_mut().for_each(|layer| layer.per_token = 2 * heads * size);
            assumed = !layers.is_empty();
        }
        let without = measures.size_if_any("layers without cache")?.unwrap_or(0);
        let with = layers.len().saturating_sub(usize::try_from(without).unwrap_or(usize::MAX));
        layers[with..].iter_mut().for_each(|layer| *layer = LayerCache::default());
        for (layer, window) in layers.iter_mut().zip(windows(config, measures, shared.layers)?) {
            layer.window = window;
        }
        Ok(Self { layers, assumed })
    }

    /// Elements that layers `from..to` keep of a sequence of `tokens` tokens.
    pub fn elements(&self, layers: std::ops::Range<u64>, tokens: u64) -> u64 {
        self.run(layers)
            .map(|layer| layer.elements(tokens).saturating_add(layer.per_sequence))
            .fold(0, u64::saturating_add)
    }

    fn run(&self, layers: std::ops::Range<u64>) -> impl Iterator<Item = &LayerCache> {
        let place = |layer: u64| usize::try_from(layer).unwrap_or(usize::MAX).min(self.layers.len());
        let (from, to) = (place(layers.start), place(layers.end));
        self.layers[from..to.max(from)].iter()
    }
}

/// The window of each layer.
///
/// Source: `layer_types` and its forerunners in transformers' configurations: `sliding_window_pattern` (every n-th layer looks back on
/// all), `use_sliding_window` (a switch), `max_window_layers` (layers from there on have the window).
fn windows(config: &Config, measures: Measures<'_>, layers: u64) -> Result<Vec<Option<u64>>, ConfigError> {
    let count = usize::try_from(layers).unwrap_or(0);
    let none = || vec![None; count];
    let Some(window) = measures.size_if_any("window")? else { return Ok(none()) };
    let section = config.text();
    let types = section.get("layer_types").and_then(Value::as_array);
    if let Some(types) = types.filter(|types| types.len() >= count) {
        let is_local = |kind: &Value| {
            let kind = kind.as_str().unwrap_or_default();
            ["sliding", "chunked", "local"].iter().any(|word| kind.contains(word))
        };
        return Ok(types[..count].iter().map(|kind| is_local(kind).then_some(window)).collect());
    }
    if section.get("use_sliding_window").and_then(Value::as_bool) == Some(false) {
        return Ok(none());
    }
    let every = measures.size_if_any("whole attention every")?.and_then(|every| usize::try_from(every).ok());
    let first = section.get("max_window_layers").and_then(Value::as_u64);
    let first = first.filter(|_| section.flag("use_sliding_window")).unwrap_or(0);
    let is_local = |layer: usize| {
        layer as u64 >= first && every.is_none_or(|every| !(layer + 1).is_multiple_of(every.max(1)))
    };
    Ok((0..count).map(|layer| is_local(layer).then_some(window)).collect())
}
