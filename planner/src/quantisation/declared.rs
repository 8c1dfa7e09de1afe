//! What `quantization_config` declares.

use super::error::QuantisationError;
use crate::{
    graph::{Module, collapse},
    model::Config,
    quote::escaped,
};
use serde_json::Value;
use std::fmt;

/// Most elements in a group or a block.
const MAX_BLOCK: u64 = 1 << 16;

/// What a configuration says of how the weights are quantised. What the shapes of the tensors say by themselves is taken
/// from them, and compared with this.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quantisation {
    /// `quant_method`.
    pub method: String,
    /// Bits of a weight; several where groups of modules differ.
    pub bits: Vec<u64>,
    /// Input features that share a scale, for layouts that group them; several where groups of modules differ.
    pub group_sizes: Vec<u64>,
    /// Rows and columns that share a scale, for layouts with blocks.
    pub block: Option<(u64, u64)>,
    /// Whether the input features of a group lie scattered over the whole (GPTQ's act-order): then groups cannot be cut.
    pub act_order: bool,
    /// The variant of the method's packing, as it is written.
    pub format: Option<String>,
    /// Modules that are not quantised, as they are written.
    pub excluded: Vec<String>,
}

impl Quantisation {
    /// What `config` declares; `None` when the weights are not quantised.
    ///
    /// # Errors
    /// [`QuantisationError::BadValue`] for numbers that no checkpoint has.
    pub fn of(config: &Config) -> Result<Option<Self>, QuantisationError> {
        let declared = ["quantization_config", "compression_config"].iter().find_map(|key| config.get(key));
        let Some(declared) =
            declared.filter(|value| value.as_object().is_some_and(|object| !object.is_empty()))
        else {
            return Ok(None);
        };
        let method = declared.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        let method: String = method.chars().take(40).collect();
        let mut all = Self { method, ..Self::default() };
        let first = |keys: &[&str]| keys.iter().find_map(|key| declared.get(*key).filter(|v| !v.is_null()));
        all.add_sizes(declared)?;
        all.act_order = first(&["desc_act"]).and_then(Value::as_bool).unwrap_or(false);
        // Per module, by regular expressions: which modules follow from the shapes.
        let dynamic = declared.get("dynamic").and_then(Value::as_object);
        for other in dynamic.into_iter().flat_map(|modules| modules.values()) {
            all.add_sizes(other)?;
            // Scales that are not cut go with any order of the inputs, so one such module makes it safe for all.
            all.act_order |= other.get("desc_act").and_then(Value::as_bool).unwrap_or(false);
        }
        let format = first(&["checkpoint_format", "version", "format"]).and_then(Value::as_str);
        all.format = format.map(|format| format.chars().take(40).collect());
        all.block = block(declared.get("weight_block_size"), "weight_block_size")?;
        for list in ["modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "exclude"] {
            let names = declared.get(list).and_then(Value::as_array);
            all.excluded.extend(names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
        let groups = declared.get("config_groups").and_then(Value::as_object);
        for weights in
            groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"))
        {
            all.add_sizes(weights)?;
            all.block = all.block.or(block(weights.get("block_structure"), "block_structure")?);
            let order = weights.get("actorder");
            all.act_order |=
                order.and_then(Value::as_str) == Some("group") || order == Some(&Value::Bool(true));
        }
        Ok(Some(all))
    }

    /// Adds the bits and the group size that `object` gives.
    fn add_sizes(&mut self, object: &Value) -> Result<(), QuantisationError> {
        for key in ["bits", "w_bit", "num_bits"] {
            let bits = number(object, key, 32)?;
            self.bits.extend(bits.filter(|bits| !self.bits.contains(bits)));
        }
        for key in ["group_size", "q_group_size"] {
            // -1 and 0 stand for one scale for all input features.
            if object.get(key).is_some_and(|value| value.as_i64().is_none_or(|size| size > 0)) {
                let size = number(object, key, MAX_BLOCK)?;
                self.group_sizes.extend(size.filter(|size| !self.group_sizes.contains(size)));
            }
        }
        Ok(())
    }

    /// One of `module` that is said not to be quantised, by its whole name; other ways to write exclusions are not read.
    pub fn excluded_of(&self, module: &Module) -> Option<&str> {
        self.excluded.iter().map(String::as_str).find(|name| {
            let (template, blocks) = collapse(name);
            template == module.name && module.blocks.binary_search(&blocks).is_ok()
        })
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quantised by {}", self.method)?;
        if let [bits] = self.bits.as_slice() {
            write!(f, ", {bits} bit")?;
        }
        if let [size] = self.group_sizes.as_slice() {
            write!(f, ", groups of {size}")?;
        }
        if let Some((rows, columns)) = self.block {
            write!(f, ", blocks of {rows}×{columns}")?;
        }
        if self.act_order {
            f.write_str(", act-order")?;
        }
        Ok(())
    }
}

fn bad(key: &str, value: &Value, expected: &'static str) -> QuantisationError {
    let value = escaped(&value.to_string().chars().take(40).collect::<String>());
    QuantisationError::BadValue { key: key.to_owned(), value, expected }
}

fn number(object: &Value, key: &str, most: u64) -> Result<Option<u64>, QuantisationError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => Err(bad(key, value, "a number that weights are quantised by")),
        },
    }
}

fn block(value: Option<&Value>, key: &str) -> Result<Option<(u64, u64)>, QuantisationError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let sizes: Vec<u64> = match value {
        Value::Array(sizes) => sizes.iter().filter_map(Value::as_u64).collect(),
        Value::String(text) => text.split('x').filter_map(|size| size.parse().ok()).collect(),
        _ => Vec::new(),
    };
    match sizes.as_slice() {
        [rows @ 1..=MAX_BLOCK, columns @ 1..=MAX_BLOCK] => Ok(Some((*rows, *columns))),
        _ => Err(bad(key, value, "two numbers from 1 to 65536")),
    }
}
