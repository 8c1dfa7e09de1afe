"""A forward pass over the ranks of a tensor-parallel group, with weights that each rank read for itself.

    torchrun --nproc-per-node 2 python/examples/forward.py CHECKPOINT

The checkpoint is a Llama's. The model is written out below with the sizes of one rank: column-parallel q, k, v, gate and up,
row-parallel o and down, a vocabulary-parallel embedding and head. The answer of all ranks together is compared with that of
`transformers`, where it is installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

import shardwright
import shardwright.torch


class Layer(torch.nn.Module):
    def __init__(self, config: dict, tp: int) -> None:
        super().__init__()
        hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config.get("head_dim") or hidden // heads
        self.heads, self.kv = heads // tp, max(1, kv // tp)
        bias = config.get("attention_bias", False)
        attention = {
            "q_proj": torch.nn.Linear(hidden, self.heads * self.size, bias=bias),
            "k_proj": torch.nn.Linear(hidden, self.kv * self.size, bias=bias),
            "v_proj": torch.nn.Linear(hidden, self.kv * self.size, bias=bias),
            "o_proj": torch.nn.Linear(self.heads * self.size, hidden, bias=False),
        }
        inner = config["intermediate_size"] // tp
        self.self_attn = torch.nn.ModuleDict(attention)
        # The bias is added once, by the rank that holds it.
        if bias and dist.get_rank() == 0:
            self.self_attn["o_proj"].bias = torch.nn.Parameter(torch.zeros(hidden))
        self.mlp = torch.nn.ModuleDict(
            {
                "gate_proj": torch.nn.Linear(hidden, inner, bias=False),
                "up_proj": torch.nn.Linear(hidden, inner, bias=False),
                "down_proj": torch.nn.Linear(inner, hidden, bias=False),
            }
        )
        self.input_layernorm = torch.nn.RMSNorm(hidden, eps=config["rms_norm_eps"])
        self.post_attention_layernorm = torch.nn.RMSNorm(hidden, eps=config["rms_norm_eps"])

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        normed = self.input_layernorm(x)

        def split(name: str, heads: int) -> torch.Tensor:
            return self.self_attn[name](normed).view(-1, heads, self.size).transpose(0, 1)

        def turned(it: torch.Tensor) -> torch.Tensor:
            a, b = it.chunk(2, dim=-1)
            return it * cos + torch.cat((-b, a), dim=-1) * sin

        q, k, v = turned(split("q_proj", self.heads)), turned(split("k_proj", self.kv)), split("v_proj", self.kv)
        k, v = (it.repeat_interleave(self.heads // self.kv, dim=0) for it in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + summed(self.self_attn["o_proj"](attended))
        normed = self.post_attention_layernorm(x)
        inner = F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        return x + summed(self.mlp["down_proj"](inner))


class Model(torch.nn.Module):
    def __init__(self, config: dict, tp: int) -> None:
        super().__init__()
        rows = -(-config["vocab_size"] // tp)
        self.config, self.rows = config, rows
        self.model = torch.nn.ModuleDict(
            {
                "embed_tokens": torch.nn.Embedding(rows, config["hidden_size"]),
                "layers": torch.nn.ModuleList(Layer(config, tp) for _ in range(config["num_hidden_layers"])),
                "norm": torch.nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"]),
            }
        )
        self.lm_head = torch.nn.Linear(config["hidden_size"], rows, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        local = tokens - dist.get_rank() * self.rows
        here = (local >= 0) & (local < self.rows)
        x = summed(self.model["embed_tokens"](local.clamp(0, self.rows - 1)) * here.unsqueeze(-1))
        size = self.model["layers"][0].size
        rope = self.config.get("rope_parameters") or self.config
        base = rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0
        angles = torch.outer(torch.arange(len(tokens)).float(), base ** (-torch.arange(0, size, 2).float() / size))
        cos, sin = (it.repeat(1, 2) for it in (angles.cos(), angles.sin()))
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        parts = [torch.empty(len(tokens), self.rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, self.lm_head(self.model["norm"](x)).contiguous())
        return torch.cat(parts, dim=-1)[:, : self.config["vocab_size"]]


def summed(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x


def main(checkpoint: Path) -> None:
    dist.init_process_group("gloo")
    rank, tp = dist.get_rank(), dist.get_world_size()
    config = json.loads((checkpoint / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        plan = Path(folder) / "plan.yaml"
        shardwright.plan(checkpoint, plan, tp=tp, topology="host", dtype="f32")
        model = Model(config, tp)
        shardwright.torch.fill(model, shardwright.stream(plan, rank, device="host"))
        tokens = torch.tensor([1, 5, 9, 17, 42])
        logits = model(tokens)
    if rank == 0:
        print("next token:", logits[-1].argmax().item())
        try:
            from transformers import AutoModelForCausalLM
        except ImportError:
            print("transformers is not installed: nothing to compare with")
        else:
            whole = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            expected = whole(tokens.unsqueeze(0)).logits[0]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            print("the same logits as transformers'")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
