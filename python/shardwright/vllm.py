"""A loader for vLLM: `--load-format shardwright`.

Installing the package is enough: vLLM calls `register` in each of its processes. Each worker plans from the engine's own
configuration (tensor-parallel ranks, pipeline stages, whole experts) and reads only its rank's bytes, right into the engine's
parameters; workers of a host read each byte once. What lies in the parameters is verified over the engine's own process group; single
parameters that the engine has in another dtype, such as biases of routers, are cast after that. What is not known to be right is loaded
as vLLM does by default, whole tensors and all, with a warning.

Options, by `--model-loader-extra-config`: `verify` ("full", "sample", "off"), `io` ("auto", "mmap", "read", "direct"), `threads`
(of each worker), `plan` (a plan that was made before, for the same sizes), and `patience`, for how many seconds a worker waits for one
that shows no sign (300).

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

OPTIONS = ("verify", "io", "threads", "plan", "patience")

# Seconds: storage that is slow is no reason to give up what vLLM would wait for.
PATIENCE = 300

# What a topology says of the engine's devices: that the parameters fit is the engine's to know.
TOPOLOGY = """
topology: engine
about: the workers of an engine, whose parameters are there already
gpu: {{ kind: host, memory: 1048576 GiB, shared_memory: true }}
gpus: {world}
hubs:
  - {{ name: all, kind: memory, gpus: 0-{last}, bandwidth: 10 GB/s }}
"""

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
            self.main_model: Any = None

        def download_model(self, model_config: Any) -> None:
            _whole(self.load_config).download_model(model_config)

        def load_model(self, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
            self.parallel = vllm_config.parallel_config
            self.main_model = getattr(getattr(vllm_config, "model_config", None), "model", None)
            return super().load_model(vllm_config, *args, **kwargs)

        def get_all_weights(self, model_config: Any, model: Any) -> Any:
            # Reloading takes whole tensors.
            return _whole(self.load_config).get_all_weights(model_config, model)

        def load_weights(self, model: Any, model_config: Any) -> None:
            begin = time.monotonic()
            options = dict(self.options)
            if self.main_model not in (None, model_config.model):
                # A draft model: the plan is not of it.
                options.pop("plan", None)
            try:
                loaded = _load(model, model_config, self.parallel, self.load_config, options)
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


def _load(
    model: Any, model_config: Any, parallel: Any, load_config: Any, options: dict[str, Any]
) -> dict[str, Any]:
    try:
        group = _Group()
    except (ImportError, AttributeError) as missing:
        raise NotKnown(f"this release of vLLM looks different: {missing}") from None
    rank, world = group.rank, group.world
    with tempfile.TemporaryDirectory(prefix="shardwright-") as folder:
        adapted = os.path.join(folder, "adapted.yaml")
        why: Exception | None = None
        try:
            checkpoint = _checkpoint(model, model_config, load_config)
            stages = _stages(model_config, group)
            targets = _prepared(model, checkpoint, parallel, options, group, stages, folder, adapted)
        except Exception as reason:
            why = reason
        # Every worker comes here, once: none loads whole tensors while others wait for it.
        everybody = group.agree(why is None)
        if isinstance(why, ValueError) or (why is not None and options.get("plan") is not None):
            # What somebody asked for by name is not left out in silence.
            raise why
        if why is not None:
            raise NotKnown(str(why) if isinstance(why, (NotKnown, shardwright.ShardwrightError)) else repr(why))
        if not everybody:
            raise NotKnown("another worker does not know its parameters; its log says why")
        before = _read_bytes()
        loading = shardwright.stream(
            adapted,
            rank,
            checkpoint=checkpoint,
            device="cuda" if targets.device.type == "cuda" else "host",
            verify=options.get("verify", "full"),
            io=options.get("io", "auto"),
            threads=int(options.get("threads", 0)),
            rendezvous=group.meeting() if world > 1 else None,
            into=targets.same,
            all_reduce=group.summing(targets.device) if world > 1 else None,
            patience=int(options.get("patience", PATIENCE)),
        )
        _wait(loading, targets, group)
        report = loading.report
        return {"rank": rank, "read": _read_bytes() - before, "bytes": report["bytes"], "files": report["files"]}


def _checkpoint(model: Any, model_config: Any, load_config: Any) -> str:
    """The checkpoint's folder on this host; of a repository, the one that vLLM downloads it to."""
    name: str = model_config.model
    if os.path.isdir(name):
        return name
    folder: str = _whole(load_config)._prepare_weights(
        model_name_or_path=name,
        subfolder=None,
        revision=model_config.revision,
        fall_back_to_pt=getattr(model, "fall_back_to_pt_during_load", True),
        allow_patterns_overrides=getattr(model, "allow_patterns_overrides", None),
    )[0]
    if not os.path.exists(os.path.join(folder, "config.json")):
        # Weights that have a folder of their own, by --download-dir.
        from huggingface_hub import hf_hub_download

        hf_hub_download(name, "config.json", revision=model_config.revision, cache_dir=load_config.download_dir)
    return folder


def _stages(model_config: Any, group: _Group) -> list[int] | None:
    """The layers of each pipeline stage, by the engine's own rule."""
    if group.pp == 1:
        return None
    from vllm.distributed.utils import get_pp_indices

    layers = model_config.hf_text_config.num_hidden_layers
    ranges = [get_pp_indices(layers, stage, group.pp) for stage in range(group.pp)]
    return [stop - start for start, stop in ranges]


def _prepared(
    model: Any,
    checkpoint: str,
    parallel: Any,
    options: dict[str, Any],
    group: _Group,
    stages: list[int] | None,
    folder: str,
    adapted: str,
) -> _Targets:
    """Plans, writes the plan of what the engine's ranks hold to `adapted`, and finds where this rank's slices go.

    Raises `NotKnown`, or whatever it met, where that is not known to be right; `ValueError` for a plan that was asked for and is not for
    this engine.
    """
    if parallel is None or parallel.data_parallel_size > 1:
        raise NotKnown("data-parallel copies are not known to be right")
    if group.world != group.tp * group.pp:
        raise NotKnown(f"{group.world} workers are not tp {group.tp} × pp {group.pp}")
    if parallel.enable_expert_parallel and getattr(parallel, "expert_placement_strategy", "linear") != "linear":
        raise NotKnown("experts are not dealt in runs")

    def targets_of(plan: str) -> _Targets:
        return _targets(model, json.loads(engine_tensors(plan, "vllm", group.rank, adapted, checkpoint, stages)))

    plan, world = options.get("plan"), group.world
    if plan is not None:
        if (planned := shardwright.check(plan, checkpoint=checkpoint)["ranks"]) != world:
            sizes = f"--tp {group.tp}" if group.pp == 1 else f"--tp {group.tp} --pp {group.pp}"
            raise ValueError(f"{plan} is for {planned} ranks, and the engine has {world}: plan with {sizes}")
        return targets_of(plan)

    topology, plan = os.path.join(folder, "topology.yaml"), os.path.join(folder, "plan.yaml")
    Path(topology).write_text(TOPOLOGY.format(world=world, last=max(world - 1, 0)))

    def planned_as(dtype: str | None) -> _Targets:
        expert_parallel = bool(parallel.enable_expert_parallel)
        shardwright.plan(
            checkpoint,
            plan,
            tp=group.tp,
            pp=group.pp,
            topology=topology,
            expert_parallel=expert_parallel,
            dtype=dtype,
        )
        return targets_of(plan)

    targets = planned_as(None)
    if targets.cast_bytes() > targets.same_bytes():
        # The engine has all of them in another dtype: they are cast on their way.
        targets = planned_as(targets.dtype())
    return targets


@dataclass
class _Targets:
    """The parts of parameters that the slices of tensors go to, by the tensors' names in the checkpoint, each as a view of one dimension."""

    device: torch.device
    same: dict[str, torch.Tensor]
    """Bytes, which are those of the slice."""
    cast: dict[str, torch.Tensor]
    """Elements, which the engine has in another dtype than the plan."""

    def same_bytes(self) -> int:
        return sum(part.numel() for part in self.same.values())

    def cast_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.cast.values())

    def dtype(self) -> str | None:
        """What most of what is to be cast is cast to, in the words of `shardwright plan`."""
        import torch

        words = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
        bytes_of: dict[Any, int] = {}
        for part in self.cast.values():
            bytes_of[part.dtype] = bytes_of.get(part.dtype, 0) + part.numel() * part.element_size()
        return words.get(max(bytes_of, key=bytes_of.__getitem__, default=None))


def _targets(model: Any, known: list[dict[str, Any]]) -> _Targets:
    """Where the slices go. Raises `NotKnown` when a parameter is missing, has another shape, or is not known."""
    import torch
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    from shardwright.torch import DTYPES

    state = ShardedStateLoader._filter_subtensors(model.state_dict())
    names = {tensor["name"] for tensor in known}
    if names != set(state):
        unknown, missing = sorted(set(state) - names)[:5], sorted(names - set(state))[:5]
        raise NotKnown(f"parameters that are not known: {unknown}; that are not there: {missing}")
    devices = {tensor.device for tensor in state.values()}
    device = next(iter(devices), torch.device("cpu"))
    if len(devices) > 1 or device.type not in ("cpu", "cuda") or (device.type == "cuda" and torch.version.hip):
        raise NotKnown(f"parameters on {sorted(map(str, devices))} are not known to be right")
    targets = _Targets(device, {}, {})
    for tensor in known:
        found = state[tensor["name"]]
        if list(found.shape) != tensor["shape"] or not found.is_contiguous():
            raise NotKnown(f"{tensor['name']} is {list(found.shape)}, not {tensor['shape']}")
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
    if device.type == "cuda":
        # Whatever still writes there is done before anything is loaded into it.
        torch.cuda.synchronize(device)
    return targets


def _wait(loading: shardwright.Loading, targets: _Targets, group: _Group) -> None:
    """Waits until all is loaded and verified, and casts what the engine has in another dtype."""
    import torch

    left = set(targets.same) | set(targets.cast)
    error: Exception | None = None
    try:
        for tensor in loading:
            left.discard(tensor.name)
            if (into := targets.cast.get(tensor.name)) is not None:
                into.copy_(torch.from_dlpack(tensor).view(-1))
    except Exception as failure:
        # At once: a worker that is gone keeps the others from agreeing.
        log.error("shardwright: %s", failure)
        error = failure
    # Nobody goes on with weights that another worker does not have.
    try:
        everybody = group.agree(error is None and not left)
    except RuntimeError as broken:
        raise error or RuntimeError("shardwright: another worker ended while weights were loaded") from broken
    if error is not None:
        raise error
    if left:
        raise RuntimeError(f"shardwright: nothing was loaded for {sorted(left)[:5]}")
    if not everybody:
        raise RuntimeError("shardwright: another worker could not load its weights; its log says why")


class _Group:
    """The engine's workers that load one model among them, by its own means: the tensor-parallel group, of all pipeline stages.

    Raises ImportError or AttributeError where the engine's look different, on all workers alike.
    """

    def __init__(self) -> None:
        from vllm.distributed import get_pp_group, get_tp_group, get_world_group

        shared, stages = get_tp_group(), get_pp_group()
        self.tp: int = shared.world_size
        self.pp: int = stages.world_size
        self.rank: int = stages.rank_in_group * self.tp + shared.rank_in_group
        group = shared if self.pp == 1 else get_world_group()
        self.world: int = group.world_size
        self.ranks, self.is_first = group.ranks, group.rank_in_group == 0
        self.on_hosts, self.on_devices = group.cpu_group, group.device_group

    def agree(self, fine: bool) -> bool:
        """Whether all workers are fine. Every worker calls it."""
        import torch
        import torch.distributed as dist

        if self.world == 1:
            return fine
        answer = torch.tensor([1 if fine else 0], dtype=torch.int64)
        dist.all_reduce(answer, op=dist.ReduceOp.MIN, group=self.on_hosts)
        return bool(answer.item())

    def summing(self, device: torch.device) -> Callable[[bytearray, str], None]:
        """How all workers combine numbers: over NCCL where the parameters are on GPUs, else over gloo."""
        import torch
        import torch.distributed as dist

        operations = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}

        def all_reduce(numbers: bytearray, how: str) -> None:
            if not numbers:
                return
            values = torch.frombuffer(numbers, dtype=torch.int64)
            if device.type == "cuda":
                there = values.to(device)
                dist.all_reduce(there, op=operations[how], group=self.on_devices)
                values.copy_(there)
            else:
                dist.all_reduce(values, op=operations[how], group=self.on_hosts)

        return all_reduce

    def meeting(self) -> str:
        """Where the workers meet: a free port of the first one's host."""
        import torch.distributed as dist

        address = [None]
        if self.is_first:
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
            host = os.environ.get("VLLM_HOST_IP") or socket.gethostname()
            try:
                socket.getaddrinfo(host, None)
            except OSError:
                host = "127.0.0.1"
            address = [f"{host}:{port}"]
        dist.broadcast_object_list(address, src=self.ranks[0], group=self.on_hosts)
        assert address[0] is not None
        return address[0]
