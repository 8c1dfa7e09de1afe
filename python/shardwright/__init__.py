"""shardwright: who holds which part of a checkpoint's weights, and each rank's part in memory.

Plans, checks and exports are the command line's commands, with its words and its errors; what they print as JSON is
returned as it is. `load` and `stream` give a rank's weights as tensors that lie where they were loaded, through DLPack:
`torch.from_dlpack(tensor)`, `numpy.from_dlpack(tensor)`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shardwright._shardwright import (
    AnswerIsNo,
    BadInput,
    EnvironmentFailed,
    Loading,
    ShardwrightError,
    Tensor,
    UsageError,
    __version__,
    call,
)

__all__ = [
    "AnswerIsNo",
    "BadInput",
    "EnvironmentFailed",
    "Loading",
    "ShardwrightError",
    "Tensor",
    "UsageError",
    "Weights",
    "__version__",
    "check",
    "export",
    "inspect",
    "layouts",
    "load",
    "plan",
    "slices",
    "stream",
]

Path = str | os.PathLike[str]


def _options(options: Mapping[str, Any]) -> list[str]:
    """The arguments that say the same on the command line; what is None or False is left out."""
    arguments: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            arguments.append(flag)
        elif isinstance(value, (list, tuple)):
            arguments += [flag, ",".join(str(item) for item in value)]
        else:
            arguments += [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return arguments


def _json(command: str, *positional: Path, **options: Any) -> Any:
    arguments = [command, *(os.fspath(item) for item in positional), *_options(options)]
    return json.loads(call(arguments))


def inspect(checkpoint: Path) -> dict[str, Any]:
    """What is in a checkpoint: its model, tensors, modules, sizes and dtypes.

    Raises `BadInput` for a checkpoint that cannot be believed.
    """
    return _json("inspect", checkpoint, json=True)


def plan(
    checkpoint: Path,
    output: Path,
    *,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    topology: str | None = None,
    nodes: int | None = None,
    expert_parallel: bool = False,
    uneven: bool = False,
    weights: Sequence[int] | None = None,
    rules: Path | None = None,
    dtype: str | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Plans who holds what, and writes the plan to `output`. The options are those of `shardwright plan`.

    Returns what `shardwright plan --json` prints. Raises `AnswerIsNo` where the weights do not fit.
    """
    return _json(
        "plan",
        checkpoint,
        output=output,
        tp=tp,
        pp=pp,
        dp=dp,
        topology=topology,
        nodes=nodes,
        expert_parallel=expert_parallel,
        uneven=uneven,
        weights=weights,
        rules=rules,
        dtype=dtype,
        base=base,
        json=True,
    )


def check(plan: Path, *, checkpoint: Path | None = None) -> dict[str, Any]:
    """A dry run of a plan, or of an export's folder: every invariant, memory, files unchanged. Raises `AnswerIsNo` where one does not hold."""
    return _json("check", plan, checkpoint=checkpoint, json=True)


def slices(plan: Path, rank: int) -> dict[str, Any]:
    """What a rank holds: for each tensor its dtype, its shape, and its boxes of the whole tensor."""
    return _json("slices", plan, rank=rank)


def layouts(checkpoint: Path, *, topology: str | None = None, **options: Any) -> dict[str, Any]:
    """The layouts of a model on a machine, best first. Further options are those of `shardwright layouts`, with `_` for `-`."""
    return _json("layouts", checkpoint, topology=topology, json=True, **options)


def export(
    plan: Path,
    output: Path,
    *,
    format: str = "shardwright",
    engine: str | None = None,
    rank: int | None = None,
    checkpoint: Path | None = None,
    verify: str = "full",
    max_file_size: str | None = None,
) -> dict[str, Any]:
    """Writes each rank's part into files, on any machine; `rank` writes that one alone.

    `format` is "shardwright", for `load`, or "sharded-state" with an `engine`, for the engine's own loader of that name. What was written
    is read back and compared with the checkpoint before the folder gets its name, unless `verify` is "sample" or "off".
    """
    return _json(
        "export",
        plan,
        output=output,
        format=format,
        engine=engine,
        rank=rank,
        checkpoint=checkpoint,
        verify=verify,
        max_file_size=max_file_size,
        json=True,
    )


class Weights(Mapping[str, Tensor]):
    """A rank's weights by their names in the checkpoint, in the order in which they became ready.

    They lie in one piece of memory, which goes when the last tensor, and the last view of any, has gone.
    """

    def __init__(self, tensors: dict[str, Tensor], report: dict[str, Any]) -> None:
        self._tensors = tensors
        self.report = report
        """What loading took: `bytes`, `seconds`, `verified_tensors` (None without verification), and how `files` were read."""

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<shardwright.Weights of {len(self)} tensors>"


def stream(
    plan: Path,
    rank: int,
    *,
    checkpoint: Path | None = None,
    device: str = "auto",
    verify: str = "full",
    io: str = "auto",
    threads: int = 0,
    rendezvous: str | None = None,
    into: Mapping[str, Any] | None = None,
    all_reduce: Callable[[bytearray, str], None] | None = None,
    patience: int | None = None,
) -> Loading:
    """Loads a rank's weights, and gives each tensor as soon as it has arrived and is verified: the embedding first, then layer by layer.

    The rank is loaded alone unless `rendezvous` says where it meets the others: `HOST:PORT` of rank 0's host. Then all ranks have to call
    this, share the reading of each host, and verify together.

    `plan` is a plan or the folder of an export. `device` is "host", "cuda", or "auto" (GPUs where the plan is for them and there are
    some). `verify` is "full", "sample" or "off", against the rank's own boxes of the files. Loading goes on while the tensors are used;
    an exception of the iterator says that the rest does not come.

    `into` has tensors by their names in the checkpoint, of whatever knows DLPack (torch, numpy): their slices are loaded right into them,
    and those of all others into memory of the loader's. Each has to have the slice's bytes, one row after the other, in its dtype or as
    uint8, and none may overlap; nobody may use it before it is ready, and what a GPU was to do with it has to be done.

    `all_reduce` lets the ranks that meet verify over what connects them already: it is called with signed 64-bit numbers and "sum", "min"
    or "max", from another thread, by all ranks in the same order, and leaves there what all of them come to. `patience` is for how many
    seconds ranks wait for one that shows no sign (10).
    """
    where = None if checkpoint is None else os.fspath(checkpoint)
    targets = None if into is None else dict(into)
    return Loading(os.fspath(plan), rank, where, device, verify, io, threads, rendezvous, targets, all_reduce, patience)


def load(
    plan: Path,
    rank: int,
    *,
    checkpoint: Path | None = None,
    device: str = "auto",
    verify: str = "full",
    io: str = "auto",
    threads: int = 0,
    rendezvous: str | None = None,
    into: Mapping[str, Any] | None = None,
    all_reduce: Callable[[bytearray, str], None] | None = None,
    patience: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Weights:
    """Loads all of a rank's weights; the arguments are those of `stream`. `progress` hears how many bytes have come, with each tensor."""
    loading = stream(
        plan,
        rank,
        checkpoint=checkpoint,
        device=device,
        verify=verify,
        io=io,
        threads=threads,
        rendezvous=rendezvous,
        into=into,
        all_reduce=all_reduce,
        patience=patience,
    )
    tensors: dict[str, Tensor] = {}
    for tensor in loading:
        tensors[tensor.name] = tensor
        if progress is not None:
            progress(loading.bytes)
    return Weights(tensors, loading.report or {})
