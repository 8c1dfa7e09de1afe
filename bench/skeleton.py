"""Makes a full-size skeleton of a known model: true headers, config and index, and a sparse hole for the weights.

    python3 bench/skeleton.py llama-3.1-70b DIR

The files have the names, the sizes and the tensors that the hub has, yet take a few hundred kilobytes of disk: enough to
plan, check and slice, and reading the data gives zeros. Standard library only; the same model gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BF16_BYTES = 2

# Fills a file after its header: the file, positioned there, and the bytes its tensors take.
WriteData = Callable[[BinaryIO, int], None]


@dataclass(frozen=True)
class Tensor:
    """A bf16 tensor, as yet without a place in a file."""

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BF16_BYTES


@dataclass(frozen=True)
class Model:
    """A model's config.json, and the size a file may reach before the next one begins."""

    config: dict[str, Any]
    max_file_bytes: int


def llama(**sizes: Any) -> dict[str, Any]:
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


def llama_3_1(**sizes: Any) -> dict[str, Any]:
    """config.json of a Llama 3.1."""
    common = {
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    }
    return llama(**common | sizes)


def qwen2(**sizes: Any) -> dict[str, Any]:
    """config.json of a Qwen2 or Qwen2.5. It says nothing of the q, k and v biases: those come with the family."""
    common = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    return common | sizes


MODELS: dict[str, Model] = {
    "llama-3.1-8b": Model(
        llama_3_1(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_hidden_layers=32),
        max_file_bytes=5 * 10**9,
    ),
    "llama-3.1-70b": Model(
        llama_3_1(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_hidden_layers=80),
        max_file_bytes=5 * 10**9,
    ),
    "llama-3.1-405b": Model(
        llama_3_1(hidden_size=16384, intermediate_size=53248, num_attention_heads=128, num_hidden_layers=126),
        max_file_bytes=5 * 10**9,
    ),
    "qwen2-7b": Model(
        qwen2(
            hidden_size=3584,
            intermediate_size=18944,
            max_window_layers=28,
            num_attention_heads=28,
            num_hidden_layers=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-06,
        ),
        max_file_bytes=4 * 10**9,
    ),
    "qwen2.5-72b": Model(
        qwen2(
            hidden_size=8192,
            intermediate_size=29568,
            max_window_layers=80,
            num_attention_heads=64,
            num_hidden_layers=80,
            num_key_value_heads=8,
            rms_norm_eps=1e-05,
        ),
        max_file_bytes=4 * 10**9,
    ),
}


def tensors_of(config: dict[str, Any]) -> Iterator[Tensor]:
    """The model's tensors in the order of its modules, which is the order that deals them to files."""
    hidden, intermediate, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head_dim
    qkv_bias = config["model_type"] == "qwen2"
    yield Tensor("model.embed_tokens.weight", (vocabulary, hidden))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for module, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            yield Tensor(f"{prefix}.self_attn.{module}.weight", (rows, hidden))
            if qkv_bias:
                yield Tensor(f"{prefix}.self_attn.{module}.bias", (rows,))
        yield Tensor(f"{prefix}.self_attn.o_proj.weight", (hidden, hidden))
        yield Tensor(f"{prefix}.mlp.gate_proj.weight", (intermediate, hidden))
        yield Tensor(f"{prefix}.mlp.up_proj.weight", (intermediate, hidden))
        yield Tensor(f"{prefix}.mlp.down_proj.weight", (hidden, intermediate))
        yield Tensor(f"{prefix}.input_layernorm.weight", (hidden,))
        yield Tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    yield Tensor("model.norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        yield Tensor("lm_head.weight", (vocabulary, hidden))


def deal_into_files(tensors: Iterator[Tensor], max_file_bytes: int) -> list[list[Tensor]]:
    """Fills one file after the other; inside a file the tensors lie sorted by name, as `safetensors` writes them."""
    files: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if files[-1] and filled + tensor.bytes > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += tensor.bytes
    return [sorted(file, key=lambda tensor: tensor.name) for file in files]


def safetensors_header(tensors: list[Tensor]) -> bytes:
    """Length prefix and JSON header, padded with spaces so that the data begins at a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for tensor in tensors:
        start, stop = stop, stop + tensor.bytes
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (start, stop)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def empty_folder(folder: Path) -> None:
    """Makes `folder`, or exits when something is in it already."""
    if folder.exists() and not folder.is_dir():
        sys.exit(f"error: {folder} is not a folder\nhelp: name a folder that does not exist yet, or an empty one")
    if folder.is_dir() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty\nhelp: name a folder that does not exist yet, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)


def leave_hole(file: BinaryIO, data_bytes: int) -> None:
    """Extends the file by `data_bytes` that read as zeros and take no disk, where the file system can."""
    file.truncate(file.tell() + data_bytes)


def write_checkpoint(folder: Path, model: Model, write_data: WriteData = leave_hole) -> None:
    """Writes the files, the index and config.json. `write_data(file, data_bytes)` fills each file after its header."""
    empty_folder(folder)
    files = deal_into_files(tensors_of(model.config), model.max_file_bytes)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(safetensors_header(tensors))
            write_data(file, sum(tensor.bytes for tensor in tensors))
        weight_map |= {tensor.name: name for tensor in tensors}
    total = sum(tensor.bytes for tensors in files for tensor in tensors)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", model.config)
    print(f"{folder}: {len(weight_map)} tensors, {len(files)} files, {total / 1e9:.2f} GB")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, MODELS[arguments.model])


if __name__ == "__main__":
    main()
