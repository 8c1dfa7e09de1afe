//! What engines call a layout on their command lines.
//!
//! Sources: vLLM's engine arguments, SGLang's server arguments, TensorRT-LLM's `trtllm-serve` (2025 and later).

use shardwright_planner::{plan::CastDtype, serving::Layout};

/// A layout, and what else engines are told.
pub(crate) struct Served<'a> {
    pub(crate) checkpoint: &'a str,
    pub(crate) layout: Layout,
    pub(crate) nodes: u32,
    pub(crate) context_len: u64,
    /// Sequences at a time, over all copies.
    pub(crate) sequences: u64,
    pub(crate) utilization: f64,
    pub(crate) cache_bits: u64,
    /// Tokens of the longest batch of a prefill.
    pub(crate) batched_tokens: Option<u64>,
    pub(crate) cast: Option<CastDtype>,
}

/// An engine's name, its command, and what that leaves to do.
pub(crate) struct Command {
    pub(crate) engine: &'static str,
    pub(crate) line: String,
    pub(crate) remark: Option<String>,
}

/// The commands of the engines that are known.
pub(crate) fn commands(served: &Served<'_>) -> [Command; 3] {
    [vllm(served), sglang(served), tensorrt_llm(served)]
}

/// A command line that is put together flag by flag.
struct Line(String);

impl Line {
    fn new(program: &str, checkpoint: &str) -> Self {
        Self(format!("{program} {}", for_shell(checkpoint)))
    }

    fn flag(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.push_str(&format!(" {name} {value}"));
        self
    }

    fn flag_if(self, wanted: bool, name: &str, value: impl std::fmt::Display) -> Self {
        if wanted { self.flag(name, value) } else { self }
    }

    fn flag_of(self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.flag(name, value),
            None => self,
        }
    }

    fn switch_if(mut self, wanted: bool, name: &str) -> Self {
        if wanted {
            self.0.push_str(&format!(" {name}"));
        }
        self
    }
}

fn vllm(served: &Served<'_>) -> Command {
    let Layout { tp, pp, dp, expert_parallel } = served.layout;
    let each = served.sequences.div_ceil(dp.into());
    let line = Line::new("vllm serve", served.checkpoint)
        .flag("--tensor-parallel-size", tp)
        .flag_if(pp > 1, "--pipeline-parallel-size", pp)
        .flag_if(dp > 1, "--data-parallel-size", dp)
        .switch_if(expert_parallel, "--enable-expert-parallel")
        .flag("--max-model-len", served.context_len)
        .flag("--max-num-seqs", each)
        .flag("--gpu-memory-utilization", served.utilization)
        .flag_of("--max-num-batched-tokens", served.batched_tokens)
        .flag_if(served.cache_bits == 8, "--kv-cache-dtype", "fp8")
        .flag_if(served.cast.is_some(), "--dtype", served.cast.map_or("auto", dtype));
    let several = (served.nodes > 1)
        .then(|| format!("on {} nodes it needs a Ray cluster, or its own flags for each", served.nodes));
    Command { engine: "vLLM", line: line.0, remark: several }
}

fn sglang(served: &Served<'_>) -> Command {
    let Layout { tp, pp, dp, expert_parallel } = served.layout;
    // Copies that share experts are one group there, whose attention is data-parallel.
    let shares = expert_parallel && dp > 1;
    let line = Line::new("python3 -m sglang.launch_server --model-path", served.checkpoint)
        .flag("--tp-size", if shares { tp * dp } else { tp })
        .flag_if(pp > 1, "--pp-size", pp)
        .flag_if(dp > 1, "--dp-size", dp)
        .switch_if(shares, "--enable-dp-attention")
        .flag_if(expert_parallel, "--ep-size", if shares { tp * dp } else { tp })
        .flag_if(served.nodes > 1, "--nnodes", served.nodes)
        .flag("--context-length", served.context_len)
        .flag("--max-running-requests", served.sequences)
        .flag("--mem-fraction-static", served.utilization)
        .flag_of("--chunked-prefill-size", served.batched_tokens)
        .flag_if(served.cache_bits == 8, "--kv-cache-dtype", "fp8_e4m3")
        .flag_if(served.cast.is_some(), "--dtype", served.cast.map_or("auto", dtype));
    let several = (served.nodes > 1).then(|| "and --node-rank and --dist-init-addr on each node".to_owned());
    Command { engine: "SGLang", line: line.0, remark: several }
}

fn tensorrt_llm(served: &Served<'_>) -> Command {
    let Layout { tp, pp, dp, expert_parallel } = served.layout;
    let each = served.sequences.div_ceil(dp.into());
    let line = Line::new("trtllm-serve", served.checkpoint)
        .flag("--tp_size", tp)
        .flag_if(pp > 1, "--pp_size", pp)
        .flag_if(expert_parallel, "--ep_size", tp)
        .flag("--max_seq_len", served.context_len)
        .flag("--max_batch_size", each)
        .flag_of("--max_num_tokens", served.batched_tokens)
        .flag("--kv_cache_free_gpu_memory_fraction", served.utilization);
    let remark = match (dp, expert_parallel) {
        (1, _) => None,
        (_, false) => Some(format!("one such server for each of the {dp} copies")),
        (_, true) => Some(format!("one such server for each of the {dp} copies, which do not share experts")),
    };
    Command { engine: "TensorRT-LLM", line: line.0, remark }
}

fn dtype(cast: CastDtype) -> &'static str {
    match cast {
        CastDtype::F16 => "float16",
        CastDtype::BF16 => "bfloat16",
        CastDtype::F32 => "float32",
    }
}

/// A word as a shell takes it.
fn for_shell(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=+@,".contains(letter);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(layout: Layout) -> [Command; 3] {
        commands(&Served {
            checkpoint: "my models/DeepSeek's",
            layout,
            nodes: 2,
            context_len: 32_768,
            sequences: 65,
            utilization: 0.9,
            cache_bits: 8,
            batched_tokens: Some(4096),
            cast: Some(CastDtype::BF16),
        })
    }

    #[test]
    fn a_layout_has_its_flags_in_each_engine() {
        let lines = served(Layout { tp: 8, pp: 1, dp: 2, expert_parallel: true }).map(|command| command.line);
        assert_eq!(
            lines,
            [
                r"vllm serve 'my models/DeepSeek'\''s' --tensor-parallel-size 8 --data-parallel-size 2 --enable-expert-parallel --max-model-len 32768 --max-num-seqs 33 --gpu-memory-utilization 0.9 --max-num-batched-tokens 4096 --kv-cache-dtype fp8 --dtype bfloat16",
                r"python3 -m sglang.launch_server --model-path 'my models/DeepSeek'\''s' --tp-size 16 --dp-size 2 --enable-dp-attention --ep-size 16 --nnodes 2 --context-length 32768 --max-running-requests 65 --mem-fraction-static 0.9 --chunked-prefill-size 4096 --kv-cache-dtype fp8_e4m3 --dtype bfloat16",
                r"trtllm-serve 'my models/DeepSeek'\''s' --tp_size 8 --ep_size 8 --max_seq_len 32768 --max_batch_size 33 --max_num_tokens 4096 --kv_cache_free_gpu_memory_fraction 0.9",
            ]
        );
    }

    #[test]
    fn stages_are_named_and_what_is_one_is_left_out() {
        let [vllm, sglang, tensorrt] =
            served(Layout { tp: 4, pp: 2, dp: 1, expert_parallel: false }).map(|command| command.line);
        assert!(
            vllm.contains("--pipeline-parallel-size 2")
                && !vllm.contains("data-parallel")
                && !vllm.contains("expert")
        );
        assert!(sglang.contains("--pp-size 2") && !sglang.contains("--dp") && !sglang.contains("--ep"));
        assert!(tensorrt.contains("--pp_size 2") && !tensorrt.contains("--ep_size"));
    }
}
