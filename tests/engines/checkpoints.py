"""Small checkpoints of the families that are proven, as `transformers` writes them, with random weights.

    python3 tests/engines/checkpoints.py DIR [FAMILY …]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    # Not a multiple of 64: engines fill it up.
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    # Large enough that tokens depend on every layer.
    "initializer_range": 0.08,
}
HEADS = {"head_dim": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES | HEADS),
    "llama-tied": ("llama", SIZES | HEADS | {"tie_word_embeddings": True}),
    "llama-biases": ("llama", SIZES | HEADS | {"attention_bias": True, "mlp_bias": True}),
    "llama-int8": ("llama", SIZES | HEADS),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES | HEADS),
    "mistral": ("mistral", SIZES | HEADS),
    "phi3": ("phi3", SIZES | {"pad_token_id": 0}),
    "gemma2": ("gemma2", SIZES | HEADS),
    "gemma3": ("gemma3_text", SIZES | HEADS),
    "gpt_neox": ("gpt_neox", SIZES | {"intermediate_size": 1024}),
    "mixtral": ("mixtral", SIZES | HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", SIZES | HEADS | EXPERTS | {"num_experts": 8}),
    "deepseek_v3": (
        "deepseek_v3",
        SIZES
        | EXPERTS
        | {
            "num_key_value_heads": 8,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            # What the kernels of vLLM for CPUs are made for: 512 + 64.
            "q_lora_rank": 64,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "v_head_dim": 32,
            "num_nextn_predict_layers": 0,
        },
    ),
}


def write(folder: Path, family: str) -> Path:
    """Writes one below `folder`, unless it is there, and gives its folder."""
    path = folder / family
    if (path / "config.json").exists():
        return path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, sizes = FAMILIES[family]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What is one or zero when a model is new would hide a wrong place.
            if parameter.ndim == 1:
                middle = 1.0 if "norm" in name and "bias" not in name else 0.0
                parameter.copy_(middle + 0.1 * torch.randn(parameter.shape))
    model = model.to(torch.bfloat16)
    if family.endswith("-int8"):
        save_int8(model, path)
    else:
        model.save_pretrained(path, max_shard_size="2MB")
    return path


def save_int8(model: Any, path: Path) -> None:
    """Saves all linear layers but the head in int8, with a scale for each row, as compressed-tensors does (its scheme W8A8)."""
    import torch
    from compressed_tensors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme

    scheme = preset_name_to_scheme("W8A8", ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="int-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            scale = module.weight.abs().amax(dim=1, keepdim=True).float() / 127
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
    with torch.no_grad():
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format="int-quantized")
        compressor.compress_model(model)
    model.save_pretrained(path, max_shard_size="1MB")
    compressor.update_config(path)


if __name__ == "__main__":
    for name in sys.argv[2:] or FAMILIES:
        print(write(Path(sys.argv[1]), name))
