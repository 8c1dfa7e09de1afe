//! What GPUs cost: a YAML map from their kinds to dollars an hour of one, which people keep for themselves.

use crate::{
    nearest::nearest,
    quote::quote,
    topology::{Topology, gpu_named, known_gpus},
    unique_map::UniqueMap,
    yaml,
};
use std::collections::BTreeMap;

/// Dearest GPU-hour that is believed, in dollars.
const DEAREST: f64 = 100_000.0;

/// Dollars an hour of one GPU, by kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prices(BTreeMap<String, f64>);

/// A text that has no prices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricesError {
    /// Not a map from kinds to numbers.
    #[error("line {line}, column {column}: {reason}")]
    NotYaml {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A GPU that nobody knows.
    #[error("{} is no kind of GPU{}", quote(kind), nearest.as_ref().map_or(String::new(), |word| format!("; did you mean {word}")))]
    UnknownGpu {
        /// What stands there.
        kind: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A price that nobody asks.
    #[error("{}: {price} dollars an hour is not from 0 to {DEAREST}", quote(kind))]
    Absurd {
        /// The GPU.
        kind: String,
        /// What stands there.
        price: String,
    },
}

impl Prices {
    /// Reads prices; a kind is called as in topology files, or as the product is. Kinds of `topologies` count too.
    ///
    /// # Errors
    /// [`PricesError`] names the place or the GPU.
    pub fn parse(text: &str, topologies: &[&Topology]) -> Result<Self, PricesError> {
        let UniqueMap(pairs): UniqueMap<f64> = yaml::from_str(text).map_err(|error| {
            PricesError::NotYaml { line: error.line, column: error.column, reason: error.message }
        })?;
        let own = || topologies.iter().flat_map(|topology| topology.kinds()).map(|kind| kind.kind.as_str());
        let mut prices = BTreeMap::new();
        for (name, price) in pairs {
            if !(0.0..=DEAREST).contains(&price) {
                return Err(PricesError::Absurd { kind: name, price: price.to_string() });
            }
            let kind = own()
                .find(|kind| *kind == name)
                .or_else(|| gpu_named(&name).map(|known| known.kind.as_str()));
            let Some(kind) = kind else {
                let known = known_gpus().iter().map(|known| known.kind.as_str());
                return Err(PricesError::UnknownGpu {
                    nearest: nearest(&name, known.chain(own())),
                    kind: name,
                });
            };
            prices.insert(kind.to_owned(), price);
        }
        Ok(Self(prices))
    }

    /// Dollars an hour of `gpus` GPUs of a machine, where the prices of all its kinds are known; of several kinds the dearest counts.
    pub fn of(&self, topology: &Topology, gpus: u32) -> Option<f64> {
        let each = topology.kinds().iter().map(|kind| self.0.get(&kind.kind).copied());
        let dearest = each.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)?;
        Some(dearest * f64::from(gpus))
    }
}

/// Dollars for a million tokens at `tokens_per_second`.
pub fn per_million_tokens(dollars_per_hour: f64, tokens_per_second: f64) -> f64 {
    dollars_per_hour / 3600.0 / tokens_per_second * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::builtin;

    #[test]
    fn a_gpu_goes_by_its_kind_or_by_its_product_name() {
        let dgx = Topology::parse(builtin("dgx-h100").unwrap(), "dgx-h100", None, None).unwrap();
        for name in ["H100 SXM5 80GB", "NVIDIA H100 80GB HBM3"] {
            let prices = Prices::parse(&format!("{name}: 2.5\n"), &[]).unwrap();
            assert_eq!(prices.of(&dgx, 8), Some(20.0));
        }
        assert_eq!(Prices::parse("A100 SXM4 80GB: 1\n", &[]).unwrap().of(&dgx, 8), None);
        // 20 dollars an hour at 1000 tokens a second.
        assert!((per_million_tokens(20.0, 1000.0) - 5.5555).abs() < 1e-3);
    }

    #[test]
    fn what_is_no_price_is_refused_by_name() {
        let error = |text: &str| Prices::parse(text, &[]).unwrap_err();
        assert!(
            matches!(error("H100 SXM5 80G: 2\n"), PricesError::UnknownGpu { nearest: Some(word), .. } if word == "H100 SXM5 80GB")
        );
        assert!(matches!(error("Banana: 2\n"), PricesError::UnknownGpu { nearest: None, .. }));
        assert!(matches!(error("L40S: -1\n"), PricesError::Absurd { .. }));
        assert!(matches!(error("L40S: .nan\n"), PricesError::Absurd { .. }));
        assert!(matches!(error("L40S: cheap\n"), PricesError::NotYaml { .. }));
        assert!(matches!(error("- L40S\n"), PricesError::NotYaml { .. }));
        assert!(error("L40S: 1\nL40S: 2\n").to_string().contains("repeated key"));
    }
}
