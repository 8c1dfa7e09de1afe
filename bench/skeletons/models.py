"""Which models there are, and what their configs do not tell of their files.

The configs lie in `configs/`, as the hub has them but for what names a version of `transformers` or code beside the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skeletons.storage import Config

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Model:
    """A model's config.json, the size a file may reach before the next one begins, and how the files are called.

    `file_name` is filled in with the `number` of `count` from one, or with `index` and `last` from zero. `inv_freq` tells
    that the frequencies of the rotary embeddings were saved, as `transformers` once did.
    """

    config: Config
    max_file_bytes: int
    file_name: str = "model-{number:05}-of-{count:05}.safetensors"
    inv_freq: bool = False


def llama(**sizes: Any) -> Config:
    """config.json of a Llama with what its sizes have in common filled in."""
    common = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    return common | sizes


def config_of(name: str) -> Config:
    return json.loads((CONFIGS / f"{name}.json").read_text())


# Those with nothing to tell but their config, in files of some GB.
PLAIN = [
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    # As first released, with 16 key/value heads.
    "llama-3.1-405b-fp8",
    "llama-3.1-70b-w8a8",
    "qwen2-72b-gptq-int8",
    "qwen2.5-7b",
    "qwen2.5-7b-awq",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen3-1.7b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b-fp8",
]

MODELS: dict[str, Model] = {name: Model(config_of(name), 5 * 10**9) for name in PLAIN} | {
    "llama-3.1-8b": Model(config_of("llama-3.1-8b"), 5 * 10**9),
    "llama-3.1-70b": Model(config_of("llama-3.1-70b"), 5 * 10**9),
    "llama-3.1-405b": Model(config_of("llama-3.1-405b"), 5 * 10**9),
    # The first LLaMA, called 30B on the hub. Its config knows neither key/value heads nor a `rope_theta`.
    "llama-33b": Model(config_of("llama-33b"), 10 * 10**9, inv_freq=True),
    "qwen2-7b": Model(config_of("qwen2-7b"), 4 * 10**9),
    "qwen2.5-72b": Model(config_of("qwen2.5-72b"), 4 * 10**9),
    # The instruct model. Its MLP was padded from 29568 before it was quantised, so that tp 8 gets whole groups of 128.
    "qwen2.5-72b-awq": Model(config_of("qwen2.5-72b-awq"), 4 * 10**9),
    # The instruct model.
    "qwen2.5-0.5b-gptq-int4": Model(config_of("qwen2.5-0.5b-gptq-int4"), 4 * 10**9),
    "qwen3-235b-a22b": Model(config_of("qwen3-235b-a22b"), 4 * 10**9),
    # The base model; the vocabulary of the instruct model is 32768.
    "mixtral-8x22b": Model(config_of("mixtral-8x22b"), 5 * 10**9),
    "mixtral-8x22b-instruct": Model(config_of("mixtral-8x22b") | {"vocab_size": 32768}, 5 * 10**9),
    # As many files as on the hub, where some end early, so that others are a little bigger.
    "deepseek-v3": Model(config_of("deepseek-v3"), 4_250_000_000, "model-{number:05}-of-{count:06}.safetensors"),
    "gpt-oss-120b": Model(config_of("gpt-oss-120b"), 5 * 10**9, "model-{index:05}-of-{last:05}.safetensors"),
}
