"""A loader for vLLM: `--load-format shardwright`.

Installing the package is enough: vLLM calls `register` in each of its processes. Each worker plans from the engine's own
configuration and reads only its rank's bytes, right into the engine's parameters; workers of a host read each byte once. What lies
in the parameters is verified over the engine's own process group. What is not known to be right is loaded as vLLM does by default,
whole tensors and all, with a warning.

Options, by `--model-loader-extra-config`: `verify` ("full", "sample", "off"), `io` ("auto", "mmap", "read", "direct"), `threads`
(of each worker), and `plan` (a plan that was made before, for the same sizes).

Tried with vLLM 0.32 on CPUs; which families are known is in `planner/engines/vllm/`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardwright
from shardwright._shardwright import engine_tensors

if TYPE_CHECKING:
    import torch

OPTIONS = ("verify", "io", "threads", "plan")

# vLLM's log shows what its own loggers say.
log = logging.getLogger("vllm.shardwright")


class NotKnown(Exception):
    """What the engine makes of the weights is not known to be right: they are to be loaded as it does by default."""


def register() -> None:
    """Makes `--load-format shardwright` known to vLLM. Called by vLLM; harmless where its loaders look different."""
    try:
        from vllm.model_executor.model_loader import register_model_loader
        from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    except ImportError as error:
        log.warning("--load-format shardwright is not available: %s", error)
        return

    class ShardwrightLoader(BaseModelLoader):
        """Reads what this rank holds, and nothing else."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            options = dict(load_config.model_loader_extra_config or {})
            unknown = sorted(set(options) - set(OPTIONS))
            if unknown:
                raise ValueError(f"unknown options {unknown} for --load-format shardwright; known: {list(OPTIONS)}")
            self.options = options
            self.parallel: Any = None

        def download_model(self, model_config: Any) -> None:
            _whole(self.load_config).download_model(model_config)

        def load_model(self, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
            self.parallel = vllm_config.parallel_config
            return super().load_model(vllm_config, *args, **kwargs)

        def load_weights(self, model: Any, model_config: Any) -> None:
            begin = time.monotonic()
            try:
                loaded = _load(model, model_config, self.parallel, self.options)
            except NotKnown as reason:
                log.warning("shardwright: %s; loading whole tensors as vLLM does by default", reason)
                _whole(self.load_config).load_weights(model, model_config)
                return
            seconds = time.monotonic() - begin
            log.info(
                "shardwright: rank %d read %.2f GB for %.2f GB of slices in %.2f s, %.2f GB/s; %s; %s",
                loaded["rank"],
                loaded["read"] / 1e9,
                loaded["bytes"] / 1e9,
                seconds,
                loaded["bytes"] / 1e9 / max(seconds, 1e-9),
                loaded["files"],
                "nothing fell back to whole tensors",
            )
            log.info("Loading weights took %.2f seconds", seconds)

    register_model_loader("shardwright")(ShardwrightLoader)


def _whole(load_config: Any) -> Any:
    """vLLM's own loader, as if nobody had asked for ours."""
    import copy

    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    own = copy.copy(load_config)
    own.load_format = "auto"
    own.model_loader_extra_config = {}
    return DefaultModelLoader(own)


def _read_bytes() -> int:
    """Bytes that this process had read from storage, by the kernel's count."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"])
    except (OSError, KeyError, ValueError):
        return 0


def _load(model: Any, model_config: Any, parallel: Any, options: dict[str, Any]) -> dict[str, Any]:
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    rank, world = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    if parallel is None or parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
        raise NotKnown("pipeline stages and data-parallel copies are not known to be right")
    checkpoint = model_config.model
    if not os.path.isdir(checkpoint):
        raise NotKnown(f"{checkpoint} is no folder of this host")
    with tempfile.TemporaryDirectory(prefix="shardwright-") as folder:
        plan = options.get("plan")
        try:
            if plan is None:
                plan = os.path.join(folder, "plan.yaml")
                shardwright.plan(
                    checkpoint,
                    plan,
                    tp=world,
                    topology="host",
                    expert_parallel=bool(parallel.enable_expert_parallel),
                )
            elif (planned := shardwright.check(plan, checkpoint=checkpoint)["ranks"]) != world:
                raise ValueError(f"{plan} is for {planned} ranks, and the engine has {world}: plan with --tp {world}")
            adapted = os.path.join(folder, "adapted.yaml")
            known = json.loads(engine_tensors(plan, "vllm", rank, adapted, checkpoint))
        except shardwright.AnswerIsNo as reason:
            if options.get("plan") is not None:
                # What somebody asked for by name is not left out in silence.
                raise
            raise NotKnown(str(reason)) from None
        targets = _targets(model, known)
        _agree(targets is not None, "a worker does not know the engine's parameters")
        if targets is None:
            raise NotKnown("the engine's parameters are not those that are known")
        before = _read_bytes()
        device = next(iter(model.parameters())).device
        loading = shardwright.stream(
            adapted,
            rank,
            checkpoint=checkpoint,
            device="cuda" if device.type == "cuda" else "host",
            verify=options.get("verify", "full"),
            io=options.get("io", "auto"),
            threads=int(options.get("threads", 0)),
            rendezvous=_meeting() if world > 1 else None,
            into=targets.same,
            all_reduce=_summing(device) if world > 1 else None,
        )
        _wait(loading, targets)
        report = loading.report
        return {"rank": rank, "read": _read_bytes() - before, "bytes": report["bytes"], "files": report["files"]}


@dataclass
class _Targets:
    """The parts of parameters that the slices of tensors go to, by the tensors' names in the checkpoint, each as a view of one dimension."""

    same: dict[str, torch.Tensor]
    """Bytes, which are those of the slice."""
    cast: dict[str, torch.Tensor]
    """Elements, which the engine has in another dtype than the checkpoint."""


def _targets(model: Any, known: list[dict[str, Any]]) -> _Targets | None:
    """Where the slices go; None when a parameter is missing, has another shape, or is not known."""
    import torch
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    from shardwright.torch import DTYPES

    state = ShardedStateLoader._filter_subtensors(model.state_dict())
    names = {tensor["name"] for tensor in known}
    if names != set(state):
        log.warning(
            "shardwright: parameters that are not known: %s; that are not there: %s",
            sorted(set(state) - names)[:5],
            sorted(names - set(state))[:5],
        )
        return None
    targets = _Targets({}, {})
    for tensor in known:
        found = state[tensor["name"]]
        if list(found.shape) != tensor["shape"] or not found.is_contiguous():
            log.warning("shardwright: %s is %s, not %s", tensor["name"], list(found.shape), tensor["shape"])
            return None
    for tensor in known:
        parameter = state[tensor["name"]].detach()
        if "value" in tensor:
            parameter.fill_(tensor["value"])
            continue
        is_same = DTYPES.get(parameter.dtype) == tensor["dtype"]
        elements, at = parameter.view(-1), 0
        for name, count in tensor["slices"]:
            part = elements[at : at + count]
            if is_same:
                targets.same[name] = part.view(torch.uint8)
            else:
                targets.cast[name] = part
            at += count
    return targets


def _wait(loading: shardwright.Loading, targets: _Targets) -> None:
    """Waits until all is loaded and verified, and casts what the engine has in another dtype."""
    import torch

    left = set(targets.same) | set(targets.cast)
    error: BaseException | None = None
    try:
        for tensor in loading:
            left.discard(tensor.name)
            if (into := targets.cast.get(tensor.name)) is not None:
                into.copy_(torch.from_dlpack(tensor).view(-1))
    except shardwright.ShardwrightError as failure:
        error = failure
    # Nobody goes on with weights that another worker does not have.
    everybody = _agree(error is None and not left, None)
    if error is not None:
        raise error
    if left:
        raise RuntimeError(f"shardwright: nothing was loaded for {sorted(left)[:5]}")
    if not everybody:
        raise RuntimeError("shardwright: another worker could not load its weights; its log says why")


def _summing(device: torch.device) -> Callable[[bytearray, str], None]:
    """How all workers of the group combine numbers: over NCCL where the parameters are on GPUs, else over gloo."""
    import torch
    import torch.distributed as dist
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    operations = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}

    def all_reduce(numbers: bytearray, how: str) -> None:
        if not numbers:
            return
        values = torch.frombuffer(numbers, dtype=torch.int64)
        if device.type == "cuda":
            there = values.to(device)
            dist.all_reduce(there, op=operations[how], group=group.device_group)
            values.copy_(there)
        else:
            dist.all_reduce(values, op=operations[how], group=group.cpu_group)

    return all_reduce


def _agree(fine: bool, otherwise: str | None) -> bool:
    """Whether all workers of the group are fine. Every worker calls it."""
    import torch
    import torch.distributed as dist
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return fine
    answer = torch.tensor([1 if fine else 0], dtype=torch.int64)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN, group=group.cpu_group)
    all_fine = bool(answer.item())
    if not all_fine and fine and otherwise is not None:
        raise NotKnown(otherwise)
    return all_fine


def _meeting() -> str:
    """Where the workers of the group meet: a free port of the first one's host."""
    import torch.distributed as dist
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    address = [None]
    if group.rank_in_group == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        host = os.environ.get("VLLM_HOST_IP") or socket.gethostname()
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            host = "127.0.0.1"
        address = [f"{host}:{port}"]
    dist.broadcast_object_list(address, src=group.ranks[0], group=group.cpu_group)
    assert address[0] is not None
    return address[0]
