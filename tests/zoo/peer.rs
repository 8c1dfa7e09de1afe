//! What `transformers` does with each module, by the tensor-parallel plan of the model.
//!
//! The plan names modules as they are in memory; files may name them otherwise. So a module is looked up by what follows its
//! layer's number, or by its last two names, and experts that lie one by one in files by the matrix that holds them all.

use super::Cut;
use serde_json::Value;
use std::collections::BTreeMap;

/// A tensor-parallel plan of `transformers`.
pub(crate) struct Peer {
    styles: BTreeMap<String, Cut>,
}

/// Names of experts' matrices in files, and in memory.
const EXPERTS: [(&str, &str); 7] = [
    ("gate_proj", "gate_up_proj"),
    ("up_proj", "gate_up_proj"),
    ("w1", "gate_up_proj"),
    ("w3", "gate_up_proj"),
    ("input_linear", "gate_up_proj"),
    ("w2", "down_proj"),
    ("output_linear", "down_proj"),
];

impl Peer {
    pub(crate) fn of(fixture: &Value) -> Self {
        let plan = fixture["tp_plan"].as_object().cloned().unwrap_or_default();
        let styles = plan.iter().filter_map(|(name, style)| Some((name.clone(), cut(style.as_str()?)?)));
        Self { styles: styles.collect() }
    }

    /// Whether it cuts nothing but the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.styles.len() <= 1
    }

    /// What is done with `module`, whose numbers are `*`.
    pub(crate) fn cut(&self, module: &str) -> Cut {
        let mut names = vec![module.to_owned()];
        for (on_disk, in_memory) in EXPERTS {
            if let Some(before) = module.strip_suffix(on_disk) {
                let fused = before.replace(".experts.*.", ".experts.");
                names.push(format!("{fused}{in_memory}"));
                names.push(fused.replace("block_sparse_moe.", "block_sparse_moe.experts.") + in_memory);
                names.push(fused.replace("block_sparse_moe.", "mlp.") + in_memory);
            }
        }
        if module.contains(".experts.*.") {
            names.push(module.replace(".experts.*.", ".experts."));
        }
        names.iter().find_map(|name| self.find(name)).unwrap_or(Cut::Whole)
    }

    fn find(&self, name: &str) -> Option<Cut> {
        let ends_alike = |tail: &str| {
            self.styles.iter().find(|(known, _)| *known == tail || known.ends_with(&format!(".{tail}")))
        };
        let after_layer = name.split_once(".*.").map(|(_, rest)| rest);
        let tail = match after_layer {
            // In a layer what follows its number tells all, but for which tower it is in.
            Some(rest) => {
                let tower = |name: &str| ["vis", "audio", "encoder"].iter().any(|word| name.contains(word));
                return self
                    .styles
                    .iter()
                    .find(|(known, _)| {
                        known.split_once(".*.").is_some_and(|(prefix, known)| {
                            known == rest && (tower(prefix) == tower(name) || prefix == "layers")
                        })
                    })
                    .map(|(_, &cut)| cut);
            }
            None => name.rsplit_once('.').map_or(name, |(_, last)| last),
        };
        self.styles.get(name).or_else(|| ends_alike(tail).map(|(_, cut)| cut)).copied()
    }
}

/// What a style does with the weight; `None` for those that only say how modules work together.
fn cut(style: &str) -> Option<Cut> {
    Some(match style {
        "colwise" | "packed_colwise" | "embedding_colwise" => Cut::Column,
        // Experts stored [in, out]: what is cut in memory's last dimension are outputs.
        "packed_rowwise" => Cut::Column,
        "colwise_gather_output" => Cut::ColumnGathered,
        "rowwise" => Cut::Row,
        "rowwise_split_input" => Cut::RowOfWhole,
        "embedding_rowwise" => Cut::Vocabulary,
        "replicated_with_grad_allreduce" | "mla_kv_a_proj" | "replicate" => Cut::Whole,
        _ => return None,
    })
}
