"""The models of the proof: a tiny config of each family, how it is dealt, and what of it is smaller on a rank."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf
from local import Share, cut_bloom, cut_falcon, cut_gpt2, cut_gpt_neox, cut_mpt, cut_opt
from quantised import AWQ, FP8, Scheme, gptq
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is dealt."""

    tp: int
    pp: int = 1
    uneven: bool = False
    expert_parallel: bool = False

    def __str__(self) -> str:
        stages = f" × pp {self.pp}" if self.pp > 1 else ""
        return f"tp {self.tp}{stages}{' uneven' * self.uneven}{' expert-parallel' * self.expert_parallel}"

    def options(self) -> list[str]:
        """What `shardwright plan` is asked."""
        flags = ["--uneven"] * self.uneven + ["--expert-parallel"] * self.expert_parallel
        return ["--tp", str(self.tp), "--pp", str(self.pp), *flags]


TP2, TP4, TP2_PP2 = Layout(2), Layout(4), Layout(2, pp=2)
EP2, EP4 = Layout(2, expert_parallel=True), Layout(4, expert_parallel=True)
UNEVEN = Layout(3, uneven=True)


@dataclass(frozen=True)
class Family:
    """A model, and which keys of its config count less on a rank; `vocab_size` always does."""

    model: type[PreTrainedModel]
    config: PreTrainedConfig
    layouts: tuple[Layout, ...] = (TP2, TP4)
    # Query heads and the key/value heads they read; other heads that go together likewise.
    heads: tuple[tuple[str, str], ...] = (("num_attention_heads", "num_key_value_heads"),)
    features: tuple[str, ...] = ("intermediate_size",)
    # Features of experts: all of them where whole experts are dealt.
    expert_features: tuple[str, ...] = ()
    # Changes a rank's model where its config can't say it.
    cut: Callable[[PreTrainedModel, Share], None] | None = None
    # Linear weights are stored so.
    scheme: Scheme | None = None
    # Stored tensors that the logits don't depend on: what is the same for all keys is lost in the softmax.
    unseen: tuple[str, ...] = ()
    # The inputs, all of them token ids.
    inputs: tuple[str, ...] = ("input_ids",)

    def rank_config(self, share: Share, expert_parallel: bool) -> PreTrainedConfig:
        """The config of a rank's own model."""
        config = copy.deepcopy(self.config)
        for key in self.features + (() if expert_parallel else self.expert_features):
            setattr(config, key, share.of(getattr(config, key)))
        for heads, kv_heads in self.heads:
            counts = share.of_heads(getattr(config, heads), getattr(config, kv_heads))
            for key, count in zip((heads, kv_heads), counts, strict=True):
                setattr(config, key, count)
        config.vocab_size = -(-config.vocab_size // share.ranks)
        return config

    def rank_class(self, share: Share) -> type[PreTrainedModel]:
        """The class of a rank's own model, which is cut as soon as it is built."""
        whole, cut = self.model, self.cut
        if cut is None:
            return whole

        def build(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
            whole.__init__(model, *args, **kwargs)
            cut(model, share)

        return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


# An odd vocabulary is padded by tp 2 and 4. Two key/value heads are shared by the ranks of tp 4.
VOCABULARY = 99
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
SIZES: dict[str, Any] = TOKENS | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "max_position_embeddings": 128,
}
# Where the head size can't be chosen.
ONE_HEAD_EACH: dict[str, Any] = {
    key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")
}
QUANTISED: dict[str, Any] = SIZES | {
    "hidden_size": 256,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 512,
}
TIED = {"tie_word_embeddings": True}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        hf.LlamaForCausalLM,
        hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        layouts=(TP2, TP4, UNEVEN),
    ),
    "qwen2": Family(hf.Qwen2ForCausalLM, hf.Qwen2Config(**SIZES | TIED), layouts=(TP2, TP4, TP2_PP2)),
    "qwen3": Family(
        hf.Qwen3ForCausalLM, hf.Qwen3Config(**SIZES | {"num_key_value_heads": 4}), layouts=(TP2, TP4, UNEVEN)
    ),
    "gemma3": Family(
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig(
            **SIZES | TIED,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=30.0,
        ),
    ),
    # Query, key and value in one matrix, gate and up in another.
    "phi3": Family(hf.Phi3ForCausalLM, hf.Phi3Config(**SIZES), layouts=(TP2, TP4, UNEVEN)),
    # Gate and up in one matrix; norms before and after.
    "glm4": Family(hf.Glm4ForCausalLM, hf.Glm4Config(**SIZES, attention_bias=True)),
    # A norm of its own for each head.
    "cohere": Family(hf.CohereForCausalLM, hf.CohereConfig(**SIZES | TIED, use_qk_norm=True, logit_scale=1.0)),
    # A norm over all heads at once, the ranks' means of squares being averaged.
    "olmo2": Family(hf.Olmo2ForCausalLM, hf.Olmo2Config(**SIZES)),
    # An output head with a bias.
    "phi": Family(hf.PhiForCausalLM, hf.PhiConfig(**SIZES)),
    "starcoder2": Family(hf.Starcoder2ForCausalLM, hf.Starcoder2Config(**SIZES, use_bias=True)),
    # Query, key and value of each head side by side.
    "gpt_neox": Family(
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(**ONE_HEAD_EACH, use_parallel_residual=True),
        heads=(),
        cut=cut_gpt_neox,
        layouts=(TP2, TP4, UNEVEN),
    ),
    # All query heads, then the one key and value that they share.
    "falcon multi-query": Family(
        hf.FalconForCausalLM,
        hf.FalconConfig(**ONE_HEAD_EACH | TIED, multi_query=True, new_decoder_architecture=False, bias=True),
        heads=(),
        features=("ffn_hidden_size",),
        cut=cut_falcon,
    ),
    # Of each key/value head its query heads, key and value side by side.
    "falcon grouped": Family(
        hf.FalconForCausalLM,
        hf.FalconConfig(**ONE_HEAD_EACH | TIED, num_kv_heads=4, new_decoder_architecture=True, bias=True),
        heads=(),
        features=("ffn_hidden_size",),
        cut=cut_falcon,
    ),
    # Stored [in, out].
    "gpt2": Family(
        hf.GPT2LMHeadModel,
        hf.GPT2Config(**TOKENS | TIED, n_embd=64, n_layer=2, n_head=8, n_inner=160, n_positions=128),
        heads=(),
        features=("n_inner",),
        cut=cut_gpt2,
    ),
    # A bias on the scores that differs from head to head.
    "bloom": Family(
        hf.BloomForCausalLM,
        hf.BloomConfig(**TOKENS | TIED, hidden_size=64, n_layer=2, n_head=8),
        heads=(),
        features=(),
        cut=cut_bloom,
        layouts=(TP2, TP4, UNEVEN),
    ),
    "mpt": Family(
        hf.MptForCausalLM,
        hf.MptConfig(**TOKENS | TIED, d_model=64, n_layers=2, n_heads=8, max_seq_len=128),
        heads=(),
        features=(),
        cut=cut_mpt,
    ),
    "opt": Family(
        hf.OPTForCausalLM,
        hf.OPTConfig(
            **TOKENS | TIED,
            hidden_size=64,
            word_embed_proj_dim=64,
            num_hidden_layers=2,
            num_attention_heads=8,
            ffn_dim=160,
            max_position_embeddings=128,
        ),
        heads=(),
        features=("ffn_dim",),
        cut=cut_opt,
        unseen=("k_proj.bias",),
    ),
    # Encoder and decoder; a learnt bias on the scores, a column for each head.
    "t5": Family(
        hf.T5ForConditionalGeneration,
        hf.T5Config(
            **TOKENS | TIED,
            d_model=64,
            d_kv=12,
            d_ff=160,
            num_layers=2,
            num_heads=8,
            feed_forward_proj="gated-gelu",
            initializer_factor=0.3,
        ),
        heads=(("num_heads", "num_heads"),),
        features=("d_ff",),
        inputs=("input_ids", "decoder_input_ids"),
    ),
    # A tensor for each expert on disk, one for all of them in memory.
    "mixtral": Family(
        hf.MixtralForCausalLM,
        hf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
        layouts=(TP2, TP4, EP2, EP4),
        features=(),
        expert_features=("intermediate_size",),
    ),
    "qwen3_moe": Family(
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[0]),
        layouts=(TP2, TP4, EP2, EP4),
        expert_features=("moe_intermediate_size",),
    ),
    # One tensor for all experts on disk, gate before up.
    "granitemoe": Family(
        hf.GraniteMoeForCausalLM,
        hf.GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, attention_bias=True),
        layouts=(TP2, TP4, UNEVEN, EP2),
        features=(),
        expert_features=("intermediate_size",),
    ),
    # The same stored [in, out], gate and up interleaved, with biases; a sink for each head.
    "gpt_oss": Family(
        hf.GptOssForCausalLM,
        hf.GptOssConfig(
            **SIZES | {"max_position_embeddings": 131072},
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        layouts=(TP2, TP4, UNEVEN, EP2),
        features=(),
        expert_features=("intermediate_size",),
    ),
    # Stored [in, out], gate before up; a shared expert beside them, of the same size.
    "llama4": Family(
        hf.Llama4ForCausalLM,
        hf.Llama4TextConfig(
            **SIZES | {"intermediate_size": 48},
            intermediate_size_mlp=160,
            interleave_moe_layer_step=2,
            num_local_experts=4,
            no_rope_layers=[1, 0],
        ),
        features=("intermediate_size", "intermediate_size_mlp"),
    ),
    # Latent attention; a dense layer, then routed and shared experts.
    "deepseek_v3": Family(
        hf.DeepseekV3ForCausalLM,
        hf.DeepseekV3Config(
            **ONE_HEAD_EACH,
            num_key_value_heads=8,
            q_lora_rank=40,
            kv_lora_rank=24,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=14,
            first_k_dense_replace=1,
            n_routed_experts=4,
            n_shared_experts=2,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=48,
        ),
        features=("intermediate_size", "moe_intermediate_size"),
    ),
    # Gated delta layers; attention whose queries stand beside their gates.
    "qwen3_next": Family(
        hf.Qwen3NextForCausalLM,
        hf.Qwen3NextConfig(
            **SIZES,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=10,
            linear_value_head_dim=18,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            shared_expert_intermediate_size=96,
            mlp_only_layers=[0],
        ),
        heads=(
            ("num_attention_heads", "num_key_value_heads"),
            ("linear_num_value_heads", "linear_num_key_heads"),
        ),
        features=("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    # State-space heads that all read one B and one C; a norm over all heads at once.
    "mamba2 one group": Family(
        hf.Mamba2ForCausalLM,
        hf.Mamba2Config(
            **TOKENS, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=32, expand=4, state_size=20, n_groups=1
        ),
        heads=(("num_heads", "n_groups"),),
        features=("expand",),
    ),
    # Of two groups each has a B and a C and a norm of its own: two ranks sum nothing, of four each two do.
    "mamba2 two groups": Family(
        hf.Mamba2ForCausalLM,
        hf.Mamba2Config(
            **TOKENS, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=32, expand=4, state_size=20, n_groups=2
        ),
        heads=(("num_heads", "n_groups"),),
        features=("expand",),
    ),
    "llama GPTQ": Family(hf.LlamaForCausalLM, hf.LlamaConfig(**QUANTISED), scheme=gptq(act_order=False)),
    "llama GPTQ act-order": Family(hf.LlamaForCausalLM, hf.LlamaConfig(**QUANTISED), scheme=gptq(act_order=True)),
    "llama AWQ": Family(hf.LlamaForCausalLM, hf.LlamaConfig(**QUANTISED), scheme=AWQ),
    # A block holds two heads.
    "llama FP8 blocks": Family(
        hf.LlamaForCausalLM, hf.LlamaConfig(**QUANTISED | {"num_key_value_heads": 8}), scheme=FP8
    ),
}
