//! What the models assume beside the facts: `planner/assumptions.yaml`.

use crate::{
    topology::{Bytes, Latency},
    yaml,
};
use serde::{Deserialize, Serialize};

/// Constants of the models of memory, communication and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    /// Of memory.
    pub memory: MemoryAssumptions,
    /// Of communication and time.
    pub speed: SpeedAssumptions,
}

/// What is assumed of a GPU's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryAssumptions {
    /// Tokens of a block of the cache.
    pub block_tokens: u64,
    /// What the driver keeps of a GPU's memory for itself.
    pub driver: Bytes,
    /// What the process has besides its tensors, without communicators.
    pub runtime: Bytes,
    /// Buffers of communicators, where there are several ranks.
    pub communicators: Bytes,
    /// CUDA graphs.
    pub graphs: Bytes,
    /// Tokens of the longest batch of a prefill.
    pub batched_tokens: u64,
    /// Sequences that are sampled at a time, at most.
    pub sampled_sequences: u64,
    /// Copies of the residual stream that are alive at a time.
    pub residuals: f64,
    /// The same of what is inside a feed-forward layer.
    pub features: f64,
    /// Bytes for each logit of a sampled sequence.
    pub bytes_per_logit: f64,
}

/// What is assumed of speeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedAssumptions {
    /// Of the memory's bandwidth, what is reached.
    pub memory: f64,
    /// Of the FLOP/s, what is reached.
    pub compute: f64,
    /// Of the bandwidth of links inside a node, what is reached.
    pub links: f64,
    /// Of the bandwidth of the network between nodes, what is reached.
    pub network: f64,
    /// Time of a layer that moves and computes nothing.
    pub layer: Latency,
    /// Time of a step that does nothing.
    pub step: Latency,
    /// Time of a collective of NCCL that sends nothing.
    pub collective: Latency,
    /// The same of one whose ranks write straight into each other's memory.
    pub one_shot: Latency,
    /// How much longer the fullest rank is busy with experts than all on average.
    pub expert_imbalance: f64,
}

/// Constants that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssumptionsError {
    /// Not the YAML of assumptions.
    #[error("line {line}, column {column}: {reason}")]
    NotYaml {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A figure out of its range.
    #[error("`{key}` is {found}, not from {least} to {most}")]
    OutOfRange {
        /// Which.
        key: &'static str,
        /// What stands there.
        found: String,
        /// The least that it may be.
        least: &'static str,
        /// The most.
        most: &'static str,
    },
}

impl Assumptions {
    /// Those that come with the planner.
    ///
    /// # Errors
    /// [`AssumptionsError`]: none, the tests see to it.
    pub fn built_in() -> Result<Self, AssumptionsError> {
        Self::parse(include_str!("../../assumptions.yaml"))
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`AssumptionsError`] names the place, or the figure and its range.
    pub fn parse(text: &str) -> Result<Self, AssumptionsError> {
        let read: Self = yaml::from_str(text).map_err(|error| AssumptionsError::NotYaml {
            line: error.line,
            column: error.column,
            reason: error.message,
        })?;
        read.check()?;
        Ok(read)
    }

    /// The document.
    ///
    /// # Errors
    /// None that is known: all of it is numbers.
    pub fn to_yaml(&self) -> Result<String, String> {
        yaml::to_string(self).map_err(|error| error.to_string())
    }

    fn check(&self) -> Result<(), AssumptionsError> {
        let Self { memory, speed } = self;
        let shares = [
            ("speed.memory", speed.memory),
            ("speed.compute", speed.compute),
            ("speed.links", speed.links),
            ("speed.network", speed.network),
        ];
        for (key, share) in shares {
            if !(0.01..=1.0).contains(&share) {
                return Err(AssumptionsError::OutOfRange {
                    key,
                    found: share.to_string(),
                    least: "0.01",
                    most: "1",
                });
            }
        }
        let factors = [
            ("speed.expert_imbalance", speed.expert_imbalance - 1.0),
            ("memory.residuals", memory.residuals),
            ("memory.features", memory.features),
            ("memory.bytes_per_logit", memory.bytes_per_logit),
        ];
        for (key, factor) in factors {
            if !(0.0..=1000.0).contains(&factor) {
                return Err(AssumptionsError::OutOfRange {
                    key,
                    found: factor.to_string(),
                    least: "0",
                    most: "1000",
                });
            }
        }
        let counts = [
            ("memory.block_tokens", memory.block_tokens),
            ("memory.batched_tokens", memory.batched_tokens),
            ("memory.sampled_sequences", memory.sampled_sequences),
        ];
        for (key, count) in counts {
            if !(1..=1 << 24).contains(&count) {
                return Err(AssumptionsError::OutOfRange {
                    key,
                    found: count.to_string(),
                    least: "1",
                    most: "16777216",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_with_the_planner_are_read() {
        let read = Assumptions::built_in().unwrap();
        assert_eq!(Assumptions::parse(&yaml::to_string(&read).unwrap()).unwrap(), read);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let text = include_str!("../../assumptions.yaml");
        for (from, to, key) in [
            ("compute: 0.55", "compute: 1.5", "speed.compute"),
            ("compute: 0.55", "compute: .nan", "speed.compute"),
            ("block_tokens: 16", "block_tokens: 0", "memory.block_tokens"),
            ("residuals: 3", "residuals: -1", "memory.residuals"),
            ("expert_imbalance: 1.2", "expert_imbalance: 0.5", "speed.expert_imbalance"),
        ] {
            assert!(text.contains(from));
            let error = Assumptions::parse(&text.replace(from, to)).unwrap_err();
            assert!(
                matches!(error, AssumptionsError::OutOfRange { key: found, .. } if found == key),
                "{error}"
            );
        }
        assert!(matches!(Assumptions::parse("speed: {}"), Err(AssumptionsError::NotYaml { .. })));
    }
}
