"""The groups of workers, simulated: the ranks of torch's default group, of which `SIMULATED_PP` says how many pipeline stages they are."""

from __future__ import annotations

import os
from types import SimpleNamespace

import torch.distributed as dist


def _of(ranks: list[int], rank: int, group: dist.ProcessGroup | None) -> SimpleNamespace:
    return SimpleNamespace(
        world_size=len(ranks), rank_in_group=ranks.index(rank), ranks=ranks, cpu_group=group, device_group=group
    )


def _sizes() -> tuple[int, int, int]:
    pp = int(os.environ.get("SIMULATED_PP", "1"))
    return dist.get_rank(), dist.get_world_size() // pp, pp


def get_world_group() -> SimpleNamespace:
    return _of(list(range(dist.get_world_size())), dist.get_rank(), dist.group.WORLD)


def get_tp_group() -> SimpleNamespace:
    rank, tp, pp = _sizes()
    first = rank // tp * tp
    # Of several stages, each has a group that nobody has to meet in here.
    return _of(list(range(first, first + tp)), rank, dist.group.WORLD if pp == 1 else None)


def get_pp_group() -> SimpleNamespace:
    rank, tp, pp = _sizes()
    return _of([rank % tp + stage * tp for stage in range(pp)], rank, None)
