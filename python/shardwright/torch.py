"""Weights for torch, without an engine: into a module's parameters, or as a `DTensor` of a device mesh.

Each rank reads only what it holds. Under `torchrun` with a process group, ranks agree over that group that all have what they
should; `rendezvous` of `shardwright.load` lets them share the reading of a host, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import shardwright

__all__ = ["fill", "memory", "sharded", "tensors"]


# The names that safetensors has for dtypes.
DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensors(weights: Mapping[str, shardwright.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as torch sees them, where they lie."""
    return {name: torch.from_dlpack(tensor) for name, tensor in weights.items()}


def memory(module: nn.Module, slices: Mapping[str, Any], *, prefix: str = "") -> dict[str, torch.Tensor]:
    """The module's parameters and buffers that weights can be loaded right into, without a copy: for `into` of `shardwright.load`.

    `slices` is what `shardwright.slices` says of the rank. A tensor of it is left out when the module has nothing of its name (less
    `prefix`), shape and dtype; `fill` copies, or refuses, what is loaded of those.
    """
    state = module.state_dict()
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, held in slices["tensors"].items():
        into = state.get(name.removeprefix(prefix))
        suits = into is not None and list(into.shape) == held["shape"] and DTYPES.get(into.dtype) == held["dtype"]
        # Of tensors that share memory, one is loaded into it.
        if suits and into.is_contiguous() and into.data_ptr() not in taken:
            taken.add(into.data_ptr())
            found[name] = into.view(-1).view(torch.uint8) if into.dim() else into
    return found


def fill(
    module: nn.Module,
    weights: Iterable[shardwright.Tensor] | Mapping[str, shardwright.Tensor],
    *,
    prefix: str = "",
    strict: bool = True,
) -> list[str]:
    """Copies what arrives into the module's parameters and buffers of the same names, less `prefix`, and gives the names it had no weights for.

    `weights` is what `shardwright.load` gives, or, so that reading goes on meanwhile, `shardwright.stream`. Every shape has to be that
    of the rank's slice: build the module with the sizes of one rank. Raises `KeyError` for a weight that the module does not have and,
    where `strict`, for a parameter without a weight; `ValueError` for another shape.
    """
    state = dict(module.state_dict(keep_vars=True))
    left = set(state)
    arriving = weights.values() if isinstance(weights, Mapping) else weights
    for tensor in arriving:
        name = tensor.name.removeprefix(prefix)
        if name not in state:
            raise KeyError(f"the module has no parameter for {tensor.name}")
        into = state[name]
        if tuple(into.shape) != tensor.shape:
            raise ValueError(f"{tensor.name}: this rank holds {tensor.shape}, and the module has {tuple(into.shape)}")
        arrived = torch.from_dlpack(tensor)
        # What was loaded right into the module is there.
        if arrived.data_ptr() != into.data_ptr():
            with torch.no_grad():
                into.copy_(arrived)
        left.discard(name)
        # Parameters that share memory, such as tied embeddings, are filled together.
        left = {other for other in left if state[other].data_ptr() != into.data_ptr()}
    missing = sorted(left)
    if missing and strict:
        raise KeyError(f"this rank has no weights for {missing[:5]}{' and more' if len(missing) > 5 else ''}")
    return missing


def sharded(weights: Mapping[str, shardwright.Tensor], plan: str | os.PathLike[str], mesh: Any) -> dict[str, Any]:
    """The weights as `DTensor`s over the one-dimensional `mesh` of a tensor-parallel group, whose ranks are those of `plan`.

    A tensor that is cut evenly along one dimension becomes `Shard` of it, one that every rank of the mesh holds whole `Replicate`. Raises
    `ValueError` for what no placement of DTensor describes: several boxes, uneven or filled up slices, and what some ranks of the mesh do
    not hold; leave those out of `weights`, and take them as plain tensors.
    """
    from torch.distributed.tensor import DTensor

    ranks = mesh.mesh.tolist()
    held = [shardwright.slices(plan, rank)["tensors"] for rank in ranks]
    distributed: dict[str, Any] = {}
    for name, tensor in weights.items():
        slices = [of_rank.get(name) for of_rank in held]
        placement = _placement(slices)
        if placement is None:
            raise ValueError(f"{name}: no placement of DTensor is what ranks {ranks} hold: {slices}")
        distributed[name] = DTensor.from_local(torch.from_dlpack(tensor), mesh, [placement], run_check=False)
    return distributed


def _placement(slices: list[Any]) -> Any:
    """The placement that describes one tensor's slices, in the order of the ranks of a mesh; `None` if there is none."""
    from torch.distributed.tensor import Replicate, Shard

    if any(held is None or len(held["boxes"]) != 1 or held.get("pad_rows") for held in slices):
        return None
    boxes = [held["boxes"][0] for held in slices]
    whole = [max(stops) for stops in zip(*(box["stop"] for box in boxes))]
    starts, shapes = [box["start"] for box in boxes], [held["shape"] for held in slices]
    if all(shape == whole for shape in shapes):
        return Replicate()
    for dim, size in enumerate(shapes[0]):
        cut = [[rank * size if it == dim else 0 for it in range(len(whole))] for rank in range(len(boxes))]
        share = [size if it == dim else length for it, length in enumerate(whole)]
        if starts == cut and all(shape == share for shape in shapes) and size * len(boxes) == whole[dim]:
            return Shard(dim)
    return None
