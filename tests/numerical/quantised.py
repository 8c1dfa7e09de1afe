"""Quantised weights after their public formats, as plainly as can be: whole tensors in, whole or cut tensors out.

A dequantiser gets what a rank holds and where each tensor begins in the whole one, so that a slice of a weight and the
slices of its scales, zero points and group index have to fit each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 64
BLOCK = 128
NIBBLES = torch.arange(8, dtype=torch.int32) * 4
# AutoAWQ's order: the columns that lie in an int32's nibbles, from the lowest.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Parts = dict[str, Tensor]
# Where each part begins in the whole tensor of its name.
Starts = dict[str, list[int]]


@dataclass(frozen=True)
class Scheme:
    """A quantisation: what config.json says of it, and its two directions for a weight `[out, in]`."""

    config: dict[str, Any]
    quantise: Callable[[Tensor, torch.Generator], Parts]
    dequantise: Callable[[Parts, Starts], Tensor]


def pack(values: Tensor, dim: int) -> Tensor:
    """Eight numbers below 16 along `dim` as one int32, the first in the lowest nibble."""
    nibbles = values.to(torch.int32).unflatten(dim, (-1, 8)).movedim(dim + 1, -1)
    return (nibbles << NIBBLES).sum(-1, dtype=torch.int32)


def unpack(packed: Tensor, dim: int) -> Tensor:
    return ((packed.unsqueeze(-1) >> NIBBLES) & 15).movedim(-1, dim + 1).flatten(dim, dim + 1)


def four_bits(weight: Tensor, group_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, zero points and scales of a weight `[in, out]` whose row `i` belongs to group `group_of[i]`."""
    groups = int(group_of.max()) + 1
    low = torch.stack([weight[group_of == group].amin(0) for group in range(groups)])
    high = torch.stack([weight[group_of == group].amax(0) for group in range(groups)])
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(1, 15)
    numbers = (weight / scales[group_of] + zeros[group_of]).round().clamp(0, 15)
    return numbers, zeros, scales


def to_gptq(act_order: bool, weight: Tensor, generator: torch.Generator) -> Parts:
    group_of = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    if act_order:
        group_of = group_of[torch.randperm(len(group_of), generator=generator)]
    numbers, zeros, scales = four_bits(weight.T, group_of)
    return {"qweight": pack(numbers, 0), "qzeros": pack(zeros - 1, 1), "scales": scales, "g_idx": group_of}


def from_gptq(parts: Parts, starts: Starts) -> Tensor:
    group_of = parts["g_idx"] - starts["scales"][0]
    zeros = unpack(parts["qzeros"], 1) + 1
    return (parts["scales"].float()[group_of] * (unpack(parts["qweight"], 0) - zeros[group_of])).T


def to_awq(weight: Tensor, _: torch.Generator) -> Parts:
    numbers, zeros, scales = four_bits(weight.T, torch.arange(weight.shape[1]) // GROUP)
    qweight, qzeros = (pack(part.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 1) for part in (numbers, zeros))
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales}


def from_awq(parts: Parts, starts: Starts) -> Tensor:
    place = torch.tensor(AWQ_ORDER).argsort()
    unpacked = [unpack(parts[part], 1).unflatten(1, (-1, 8)) for part in ("qweight", "qzeros")]
    numbers, zeros = (part[..., place].flatten(1) for part in unpacked)
    row = starts["qweight"][0] + torch.arange(len(numbers))
    group_of = row // GROUP - starts["scales"][0]
    return (parts["scales"].float()[group_of] * (numbers - zeros[group_of])).T


def to_fp8(weight: Tensor, _: torch.Generator) -> Parts:
    blocks = weight.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    stored = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    return {"weight": stored.to(torch.float8_e4m3fn), "weight_scale_inv": scales}


def from_fp8(parts: Parts, starts: Starts) -> Tensor:
    weight = parts["weight"].float()
    row, column = (
        (start + torch.arange(length)) // BLOCK - block
        for start, length, block in zip(starts["weight"], weight.shape, starts["weight_scale_inv"], strict=True)
    )
    return weight * parts["weight_scale_inv"][row][:, column]


def gptq(act_order: bool) -> Scheme:
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": act_order, "sym": False}
    return Scheme(config, lambda weight, generator: to_gptq(act_order, weight, generator), from_gptq)


AWQ = Scheme(
    {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, to_awq, from_awq
)
FP8 = Scheme(
    {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}, to_fp8, from_fp8
)
