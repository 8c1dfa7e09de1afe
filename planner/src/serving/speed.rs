//! How long a step takes: a roofline over each pipeline stage, and its collectives.

use super::{
    Assumptions, Deployment, Stage,
    communication::{all_gather, all_reduce, all_to_all, seconds, send},
};

/// What a layout gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// A decode step of the slowest stage, with the sequences that it has at a time.
    pub decode: StepTime,
    /// Seconds from one token of a sequence to its next.
    pub seconds_per_token: f64,
    /// Tokens a second of all sequences together.
    pub tokens_per_second: f64,
    /// Seconds from a prompt to its first token, where nothing else runs.
    pub first_token: f64,
}

/// A pass through one pipeline stage, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTime {
    /// Reading weights.
    pub weights: f64,
    /// Reading what is kept of tokens.
    pub cache: f64,
    /// Multiplying.
    pub compute: f64,
    /// Collectives inside a tensor-parallel group.
    pub collectives: f64,
    /// Tokens to their experts and back.
    pub experts: f64,
    /// The hidden state to the next stage.
    pub send: f64,
    /// Kernels that start, and the engine.
    pub overhead: f64,
}

impl StepTime {
    /// All of it: memory is read while cores multiply, collectives wait for both.
    pub fn total(&self) -> f64 {
        (self.weights + self.cache).max(self.compute)
            + self.collectives
            + self.experts
            + self.send
            + self.overhead
    }
}

impl Deployment {
    /// How fast sequences go on at the length that is asked for, and how fast a prompt is read.
    ///
    /// - A decode step of a stage with `b` sequences reads its weights once, but of routed experts only those that some token goes to,
    ///   `E (1 - (1 - k/E)^t)` of `E` for `t` tokens that go to `k` each (tokens of all copies, where these share experts), and what is
    ///   kept of all `b`; `2 × numbers of its matrices` FLOPs a token, and attention's `4 × tokens × query heads × head size`.
    /// - With `p` stages each copy has `p` batches under way: a sequence gets a token every `p` steps of the slowest stage, or as soon
    ///   as it has been through all, whichever is later.
    /// - A prompt goes through all stages one after the other, in pieces of at most `batched tokens`.
    pub fn speed(&self, assumptions: &Assumptions) -> Speed {
        let Self { model, layout, workload, .. } = self;
        let stages = u64::from(layout.pp);
        let of_copy = workload.concurrency.max(1).div_ceil(layout.dp.into());
        let batch = of_copy.div_ceil(stages);
        let at_a_time = of_copy.min(stages) as f64;
        let pass = |stage: &Stage, tokens: f64, sequences: f64, context: f64, fills: f64| {
            Pass { tokens, sequences, context, fills }.through(stage, self, assumptions)
        };
        let decode: Vec<StepTime> = model
            .stages
            .iter()
            .map(|stage| pass(stage, batch as f64, batch as f64, workload.context_len as f64, 1.0))
            .collect();
        let slowest =
            decode.iter().copied().max_by(|a, b| a.total().total_cmp(&b.total())).unwrap_or_default();
        let through_all: f64 = decode.iter().map(StepTime::total).sum();
        let seconds_per_token = through_all.max(slowest.total() * at_a_time);
        let batched = workload.batched_tokens.unwrap_or(assumptions.memory.batched_tokens);
        let piece = batched.clamp(1, workload.prompt_len.max(1));
        let pieces = workload.prompt_len.max(1).div_ceil(piece);
        // A later piece looks back on all before it: on half of the prompt, on average.
        let prompt: Vec<f64> = model
            .stages
            .iter()
            .map(|stage| {
                pass(stage, piece as f64, 1.0, workload.prompt_len as f64 / 2.0, pieces as f64).total()
            })
            .collect();
        // While a piece is in one stage the next one is in the stage before.
        let slowest_piece = prompt.iter().copied().fold(0.0, f64::max);
        let first_token = prompt.iter().sum::<f64>() + (pieces as f64 - 1.0) * slowest_piece;
        Speed {
            decode: slowest,
            seconds_per_token,
            tokens_per_second: workload.concurrency.max(1) as f64 / seconds_per_token,
            first_token,
        }
    }
}

/// What goes through a stage at once.
struct Pass {
    /// Tokens.
    tokens: f64,
    /// Of how many sequences.
    sequences: f64,
    /// Tokens that each looks back on.
    context: f64,
    /// Pieces that the sequence comes in.
    fills: f64,
}

impl Pass {
    fn through(&self, stage: &Stage, of: &Deployment, assumptions: &Assumptions) -> StepTime {
        let Deployment { model, layout, machine, workload } = of;
        let speed = &assumptions.speed;
        let (experts, chosen) = (model.experts.max(1) as f64, model.experts_per_token.max(1) as f64);
        // Copies that share experts send them their tokens.
        let sharing = if layout.expert_parallel { f64::from(layout.dp) } else { 1.0 };
        let imbalance = if layout.expert_parallel { speed.expert_imbalance } else { 1.0 };
        let touched = 1.0 - (1.0 - (chosen / experts).min(1.0)).powf(self.tokens * sharing);
        let read = machine.memory_bytes_per_second * speed.memory;
        let weights = (stage.dense_bytes as f64 + stage.expert_bytes as f64 * touched) / read;
        let cached = stage.cache_per_sequence as f64 * workload.cache_bits as f64 / 8.0;
        let share = (self.context / workload.context_len.max(1) as f64).min(1.0);
        let cache = cached * share * self.sequences / read;

        let of_experts = stage.expert_flops * chosen / experts * sharing * imbalance;
        let heads = model.query_heads as f64 / f64::from(layout.tp) * model.head_size as f64;
        let attention = 4.0 * self.context * heads * stage.layers as f64;
        let flops = self.tokens * (stage.dense_flops + of_experts + attention);
        let compute = flops / (machine.flops_per_second * speed.compute);

        let tensor = machine.tensor.as_ref();
        let sum = |collectives: &[(u64, u64)], time: &dyn Fn(f64) -> f64| -> f64 {
            collectives.iter().map(|&(times, bytes)| times as f64 * time(bytes as f64 * self.tokens)).sum()
        };
        let collectives = sum(&stage.all_reduces, &|bytes| all_reduce(tensor, bytes, assumptions).seconds)
            // Logits are of the last token of each sequence.
            + sum(&stage.all_gathers, &|bytes| all_gather(tensor, bytes / self.tokens * self.sequences, assumptions).seconds);
        let of_token = model.hidden as f64 * model.activation_bytes as f64;
        let to_experts = self.tokens / f64::from(layout.tp) * chosen * of_token * imbalance;
        let experts = 2.0
            * stage.all_to_alls as f64
            * all_to_all(machine.expert.as_ref(), to_experts, assumptions).seconds;
        let send = send(machine.pipeline.as_ref(), self.tokens * of_token, assumptions).seconds;
        let overhead = stage.layers as f64 * seconds(speed.layer)
            + seconds(speed.step) / f64::from(layout.pp) / self.fills;
        StepTime { weights, cache, compute, collectives, experts, send, overhead }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Layout, Machine, Model, Workload, tests::*},
        *,
    };

    #[test]
    fn decoding_one_sequence_is_bound_by_memory_and_reading_a_prompt_by_multiplying() {
        let assumptions = Assumptions::built_in().unwrap();
        let one = Workload { concurrency: 1, ..workload() };
        let found = Deployment { workload: one.clone(), ..deployment() }.speed(&assumptions);
        assert!(found.decode.weights > 10.0 * found.decode.compute);
        // 17.6 GB at three quarters of 3.35 TB/s are 7 ms.
        assert!((0.006..0.008).contains(&found.decode.weights), "{found:?}");
        assert!(
            found.seconds_per_token > found.decode.weights
                && found.tokens_per_second < 1.0 / found.decode.weights
        );
        // 8192 tokens of 2 × 70 GFLOP over 8 GPUs at half of 989 TFLOP/s take a quarter of a second and more.
        let prompt = Deployment { workload: Workload { prompt_len: 8192, ..one }, ..deployment() };
        assert!((0.2..0.7).contains(&prompt.speed(&assumptions).first_token));
    }

    #[test]
    fn more_sequences_give_more_tokens_each_of_them_later() {
        let assumptions = Assumptions::built_in().unwrap();
        let of = |concurrency| {
            Deployment { workload: Workload { concurrency, ..workload() }, ..deployment() }
                .speed(&assumptions)
        };
        for (few, many) in [(1, 2), (8, 64), (64, 256)] {
            let (few, many) = (of(few), of(many));
            assert!(many.tokens_per_second > few.tokens_per_second);
            assert!(many.seconds_per_token >= few.seconds_per_token);
        }
    }

    #[test]
    fn stages_take_turns() {
        let assumptions = Assumptions::built_in().unwrap();
        let whole = model();
        let mut halves = whole.clone();
        let half = &mut halves.stages[0];
        for bytes in
            [&mut half.weight_bytes, &mut half.dense_bytes, &mut half.cache_per_sequence, &mut half.layers]
        {
            *bytes /= 2;
        }
        half.dense_flops /= 2.0;
        half.all_reduces.iter_mut().for_each(|(times, _)| *times /= 2);
        halves.stages = vec![halves.stages[0].clone(), halves.stages[0].clone()];
        let two = Layout { pp: 2, ..TP8 };
        let machine = Machine { pipeline: machine().tensor, ..machine() };
        let of = |model: &Model, layout, concurrency| {
            let (model, machine) = (model.clone(), machine.clone());
            let workload = Workload { concurrency, ..workload() };
            Deployment { model, layout, machine, workload }.speed(&assumptions)
        };
        // One sequence is no faster through two stages, and many give more together.
        assert!(of(&halves, two, 1).seconds_per_token >= of(&whole, TP8, 1).seconds_per_token * 0.95);
        assert!(of(&halves, two, 256).tokens_per_second > of(&whole, TP8, 256).tokens_per_second);
    }

    #[test]
    fn few_tokens_read_few_experts() {
        let assumptions = Assumptions::built_in().unwrap();
        let mut sparse = model();
        sparse.experts = 8;
        sparse.experts_per_token = 2;
        let stage = &mut sparse.stages[0];
        stage.expert_bytes = stage.dense_bytes;
        stage.dense_bytes = 0;
        let of = |model: &Model, concurrency| {
            let (model, workload) = (model.clone(), Workload { concurrency, ..workload() });
            Deployment { model, workload, ..deployment() }.speed(&assumptions).decode.weights
        };
        let dense = of(&model(), 1);
        assert!((of(&sparse, 1) / dense - 0.25).abs() < 1e-9);
        assert!(of(&sparse, 64) / dense > 0.99);
    }
}
