"""The tensor-parallel group, simulated: all ranks of torch's default group, or none."""

from __future__ import annotations

from types import SimpleNamespace

import torch.distributed as dist


def get_tensor_model_parallel_rank() -> int:
    return dist.get_rank()


def get_tensor_model_parallel_world_size() -> int:
    return dist.get_world_size()


def get_tp_group() -> SimpleNamespace:
    ranks = list(range(dist.get_world_size()))
    group = dist.group.WORLD
    return SimpleNamespace(
        world_size=len(ranks), rank_in_group=dist.get_rank(), ranks=ranks, cpu_group=group, device_group=group
    )
