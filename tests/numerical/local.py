"""A rank's own model: how much of everything falls to it, and the changes that a smaller config can't express.

The shares are worked out here from counts alone and share nothing with the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Share:
    """What falls to one rank of a tensor-parallel group: contiguous runs, the longer ones to the first ranks."""

    rank: int
    ranks: int

    def of(self, count: int) -> int:
        """How many of `count` things fall to the rank."""
        return count // self.ranks + (self.rank < count % self.ranks)

    def of_heads(self, heads: int, kv_heads: int) -> tuple[int, int]:
        """How many query and key/value heads: whole groups of them, or a part of one group that neighbours share."""
        per_group = heads // kv_heads
        if kv_heads >= self.ranks:
            return self.of(kv_heads) * per_group, self.of(kv_heads)
        groups = [rank * kv_heads // self.ranks for rank in range(self.ranks)]
        sharing = [rank for rank in range(self.ranks) if groups[rank] == groups[self.rank]]
        return Share(sharing.index(self.rank), len(sharing)).of(per_group), 1


def resize(module: nn.Module, outputs: int | None = None, inputs: int | None = None) -> None:
    """Gives a `Linear`, or a `Conv1D` (stored [in, out]), other sizes. Its parameters are left to be loaded."""
    output_key, input_key = ("nf", "nx") if hasattr(module, "nf") else ("out_features", "in_features")
    setattr(module, output_key, outputs or getattr(module, output_key))
    setattr(module, input_key, inputs or getattr(module, input_key))
    shape = [getattr(module, output_key), getattr(module, input_key)]
    for name, parameter in list(module.named_parameters(recurse=False)):
        of_parameter = shape[:1] if name == "bias" else shape[::-1] if output_key == "nf" else shape
        setattr(module, name, nn.Parameter(parameter.new_empty(of_parameter)))


def cut_feed_forward(up: nn.Module, down: nn.Module, share: Share) -> None:
    features = share.of(up.out_features)
    resize(up, outputs=features)
    resize(down, inputs=features)


def keep_own_heads(share: Share, heads: int, argument: str, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """A hook that leaves of a bias on the scores, `[batch * heads, ...]`, that of the rank's heads."""
    of_all: Tensor = kwargs[argument]
    own = of_all.unflatten(0, (-1, heads)).tensor_split(share.ranks, dim=1)[share.rank]
    return args, kwargs | {argument: own.flatten(0, 1)}


def cut_gpt2(model: PreTrainedModel, share: Share) -> None:
    for block in model.transformer.h:
        attention = block.attn
        attention.num_heads = share.of(attention.num_heads)
        attention.split_size = attention.num_heads * attention.head_dim
        resize(attention.c_attn, outputs=3 * attention.split_size)
        resize(attention.c_proj, inputs=attention.split_size)


def cut_gpt_neox(model: PreTrainedModel, share: Share) -> None:
    for layer in model.gpt_neox.layers:
        attention = layer.attention
        width = share.of(model.config.num_attention_heads) * attention.head_size
        resize(attention.query_key_value, outputs=3 * width)
        resize(attention.dense, inputs=width)


def cut_falcon(model: PreTrainedModel, share: Share) -> None:
    for block in model.transformer.h:
        attention = block.self_attention
        heads, kv_heads = share.of_heads(attention.num_heads, attention.num_kv_heads)
        attention.num_heads, attention.num_kv_heads = heads, kv_heads
        resize(attention.query_key_value, outputs=(heads + 2 * kv_heads) * attention.head_dim)
        resize(attention.dense, inputs=heads * attention.head_dim)


def cut_opt(model: PreTrainedModel, share: Share) -> None:
    for layer in model.model.decoder.layers:
        attention = layer.self_attn
        attention.num_heads = share.of(attention.num_heads)
        width = attention.num_heads * attention.head_dim
        for module in (attention.q_proj, attention.k_proj, attention.v_proj):
            resize(module, outputs=width)
        resize(attention.out_proj, inputs=width)


def cut_bloom(model: PreTrainedModel, share: Share) -> None:
    for block in model.transformer.h:
        attention = block.self_attention
        hook = partial(keep_own_heads, share, attention.num_heads, "alibi")
        attention.register_forward_pre_hook(hook, with_kwargs=True)
        attention.num_heads = share.of(attention.num_heads)
        resize(attention.query_key_value, outputs=3 * attention.num_heads * attention.head_dim)
        resize(attention.dense, inputs=attention.num_heads * attention.head_dim)
        cut_feed_forward(block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h, share)


def cut_mpt(model: PreTrainedModel, share: Share) -> None:
    for block in model.transformer.blocks:
        attention = block.attn
        hook = partial(keep_own_heads, share, attention.n_heads, "position_bias")
        attention.register_forward_pre_hook(hook, with_kwargs=True)
        attention.n_heads = share.of(attention.n_heads)
        resize(attention.Wqkv, outputs=3 * attention.n_heads * attention.head_dim)
        resize(attention.out_proj, inputs=attention.n_heads * attention.head_dim)
        cut_feed_forward(block.ffn.up_proj, block.ffn.down_proj, share)
