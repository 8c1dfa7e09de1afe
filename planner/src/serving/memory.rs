//! What lies in a GPU's memory, and how many tokens fit beside it.

use super::{Assumptions, Deployment, Stage};

/// The memory of the fullest rank of one pipeline stage, term by term, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Which stage.
    pub stage: usize,
    /// What a GPU has.
    pub total: u64,
    /// What may not be used: `total - (total - driver) × utilization`.
    pub reserved: u64,
    /// Weights, exactly: the rank's slices, each at a multiple of 256 bytes.
    pub weights: u64,
    /// Activations of the longest prefill, `batched tokens × activation bytes × (residuals × hidden + features × intermediate)`, or,
    /// where the stage has the head and that is more, logits of all sampled sequences, `sequences × vocabulary × bytes per logit`.
    pub activations: u64,
    /// The runtime, kernels and workspaces.
    pub runtime: u64,
    /// Communicators' buffers, where there are several ranks.
    pub communicators: u64,
    /// CUDA graphs.
    pub graphs: u64,
    /// What is left for the cache; 0 where nothing is.
    pub cache: u64,
    /// By how much it does not fit at all.
    pub lacks: u64,
    /// Tokens that the cache has room for, in whole blocks: sequences of the length that is asked for, one after the other.
    pub tokens: u64,
    /// Sequences of that length that fit at a time, over all copies of the model.
    pub sequences: u64,
    /// Bytes that the stage keeps of a sequence of that length.
    pub bytes_per_sequence: u64,
}

impl Deployment {
    /// The memory of the stage that has the fewest tokens left. The cache of a sequence is
    /// `Σ layers (elements per token × min(tokens, window) + state) × bits / 8`, on every rank of a tensor-parallel group its share.
    pub fn budget(&self, assumptions: &Assumptions) -> MemoryBudget {
        let fewest = self
            .budgets(assumptions)
            .into_iter()
            .min_by_key(|budget| (budget.tokens, std::cmp::Reverse(budget.lacks)));
        fewest.unwrap_or_else(|| self.budget_of(0, &Stage::default(), assumptions))
    }

    /// The memory of every stage, in order.
    pub fn budgets(&self, assumptions: &Assumptions) -> Vec<MemoryBudget> {
        let of = |(number, stage): (usize, &Stage)| self.budget_of(number, stage, assumptions);
        self.model.stages.iter().enumerate().map(of).collect()
    }

    fn budget_of(&self, number: usize, stage: &Stage, assumptions: &Assumptions) -> MemoryBudget {
        let Self { model, layout, machine, workload } = self;
        let memory = &assumptions.memory;
        let total = machine.memory_bytes;
        let visible = total.saturating_sub(memory.driver.bytes());
        let usable = whole(visible as f64 * workload.utilization).min(total);
        let ranks = layout.tp * layout.pp;
        let several = ranks > 1 || (layout.expert_parallel && layout.dp > 1);
        let per_token = memory.residuals * model.hidden as f64 + memory.features * stage.features as f64;
        let batched = workload.batched_tokens.unwrap_or(memory.batched_tokens);
        let of_layers = batched as f64 * model.activation_bytes as f64 * per_token;
        let sampled = memory.sampled_sequences.min(workload.concurrency.max(1));
        let of_head = if stage.has_head {
            sampled as f64 * model.vocabulary as f64 * memory.bytes_per_logit
        } else {
            0.0
        };
        let activations = whole(of_layers.max(of_head));
        let runtime = memory.runtime.bytes();
        let communicators = if several { memory.communicators.bytes() } else { 0 };
        let graphs = memory.graphs.bytes();
        let taken = [stage.weight_bytes, activations, runtime, communicators, graphs]
            .iter()
            .fold(0u64, |sum, &bytes| sum.saturating_add(bytes));
        let cache = usable.saturating_sub(taken);
        let bytes_per_sequence = bytes(stage.cache_per_sequence, workload.cache_bits);
        let one_copy = cache.checked_div(bytes_per_sequence);
        // What keeps nothing of tokens has room for any number of them.
        let tokens = match one_copy {
            None => u64::MAX,
            Some(_) => {
                let tokens =
                    u128::from(cache) * u128::from(workload.context_len) / u128::from(bytes_per_sequence);
                let block = u128::from(memory.block_tokens);
                u64::try_from(tokens / block * block).unwrap_or(u64::MAX)
            }
        };
        MemoryBudget {
            stage: number,
            total,
            reserved: total - usable,
            weights: stage.weight_bytes,
            activations,
            runtime,
            communicators,
            graphs,
            cache,
            lacks: taken.saturating_sub(usable),
            tokens,
            sequences: one_copy.map_or(u64::MAX, |sequences| sequences.saturating_mul(layout.dp.into())),
            bytes_per_sequence,
        }
    }
}

fn bytes(elements: u64, bits: u64) -> u64 {
    u64::try_from(u128::from(elements) * u128::from(bits) / 8).unwrap_or(u64::MAX)
}

/// A number of bytes that was worked out as a fraction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Machine, tests::*},
        *,
    };

    #[test]
    fn the_terms_add_up_to_the_memory() {
        let (machine, workload) = (machine(), workload());
        let assumptions = Assumptions::built_in().unwrap();
        let found = deployment().budget(&assumptions);
        let MemoryBudget { reserved, weights, activations, runtime, communicators, graphs, cache, .. } =
            found;
        assert_eq!(
            reserved + weights + activations + runtime + communicators + graphs + cache,
            machine.memory_bytes
        );
        assert_eq!((found.lacks, found.stage), (0, 0));
        // Llama 3.1 70B over 8 ranks: 80 layers of one key and one value head of 128 numbers of 16 bits.
        assert_eq!(found.bytes_per_sequence, 80 * 2 * 128 * 2 * workload.context_len);
        assert!(found.tokens * 80 * 2 * 128 * 2 <= cache && found.tokens.is_multiple_of(16));
        assert_eq!(found.sequences, cache / found.bytes_per_sequence);
    }

    #[test]
    fn what_does_not_fit_says_by_how_much() {
        let assumptions = Assumptions::built_in().unwrap();
        let small = Machine { memory_bytes: 16 << 30, ..machine() };
        let found = Deployment { machine: small, ..deployment() }.budget(&assumptions);
        assert!(found.lacks > 0 && found.cache == 0 && found.tokens == 0 && found.sequences == 0);
    }

    #[test]
    fn the_stage_with_the_fewest_tokens_counts() {
        let assumptions = Assumptions::built_in().unwrap();
        let mut served = deployment();
        let half = Stage { weight_bytes: 3 << 30, ..served.model.stages[0].clone() };
        served.model.stages.push(half);
        assert_eq!(served.budget(&assumptions).stage, 0);
        served.model.stages.reverse();
        assert_eq!(served.budget(&assumptions).stage, 1);
        let all = served.budgets(&assumptions);
        assert_eq!(all.iter().map(|budget| budget.weights).collect::<Vec<_>>(), [3 << 30, 17_640 << 20]);
    }
}
