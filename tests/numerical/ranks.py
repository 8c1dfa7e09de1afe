"""A forward of several ranks: each a process with a model of its own, made of its slices only, and collectives."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import Family, Layout
from local import Share
from planned import Plan, fill_absent, read_slices
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

DEADLINE = timedelta(seconds=60)


@dataclass(frozen=True)
class Case:
    """Everything that the ranks are told."""

    family: Family
    layout: Layout
    folder: Path
    plan: Plan
    # The stored tensors that each parameter, or other part of the model's state, is made of.
    sources: dict[str, list[str]]
    # Over how many features each norm takes its mean in the whole model.
    mean_lengths: dict[str, int]
    inputs: dict[str, Tensor]


def load(model: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, Tensor]) -> PreTrainedModel:
    """The model with a state in its names on disk: every tensor must find its place, and every place its tensor."""
    loaded, report = model.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        ignore_mismatched_sizes=True,  # they are reported
        output_loading_info=True,
    )
    wrong = [f"{kind} {sorted(keys)}" for kind, keys in report.items() if keys]
    if wrong:
        raise ValueError(f"the tensors are not the model's state: {'; '.join(wrong)}")
    return loaded.eval()


class Means(TorchFunctionMode):
    """Gives each mean that is taken, and over how many features, to a function that says what it is to be instead."""

    def __init__(self, instead: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self.instead(result, args[0].shape[-1]) if func in (torch.mean, Tensor.mean) else result


def replace_means(module: nn.Module, instead: Callable[[Tensor, int], Tensor]) -> None:
    forward = module.forward

    def with_means(*args: Any, **kwargs: Any) -> Any:
        with Means(instead):
            return forward(*args, **kwargs)

    module.forward = with_means


def mean_over_ranks(whole_length: int, sharing: dist.ProcessGroup | None, mean: Tensor, length: int) -> Tensor:
    """The mean over the features of the ranks that share what is normed, where a rank's own are not all of it."""
    if length == whole_length:
        return mean
    sums = torch.cat([(mean * length).flatten(), torch.tensor([float(length)])])
    dist.all_reduce(sums, group=sharing)
    return (sums[:-1] / sums[-1]).view_as(mean)


def ranks_of_a_group(groups: int, rank: int, ranks: int) -> dist.ProcessGroup | None:
    """The ranks that share a group of features with this one; all of them where there is one group."""
    each = max(1, ranks // groups)
    made = [dist.new_group(list(range(first, first + each))) for first in range(0, ranks, each)]
    return made[rank // each]


def add_up(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    dist.all_reduce(output)
    return output


def shard_embedding(module: nn.Embedding, rank: int) -> None:
    """Looks up the rank's own rows, and sums over ranks."""
    forward, first_row = module.forward, rank * module.num_embeddings

    def over_ranks(ids: Tensor) -> Tensor:
        own = ids - first_row
        elsewhere = (own < 0) | (own >= module.num_embeddings)
        output = forward(own.masked_fill(elsewhere, 0)).masked_fill(elsewhere[..., None], 0)
        dist.all_reduce(output)
        return output

    module.forward = over_ranks


def gather_logits(ranks: int, padding: int, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    logits: list[Any] = [None] * ranks
    dist.all_gather_object(logits, output[..., : output.shape[-1] - padding])
    return torch.cat(logits, dim=-1)


def connect(model: PreTrainedModel, case: Case, rank: int) -> None:
    """Puts the collectives where the plan's roles ask for them."""
    for path, module in model.named_modules():
        parameters = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        stored = [name for parameter in parameters for name in case.sources[parameter]]
        roles = {case.plan.stored[name].role for name in stored}
        if "row-parallel" in roles:
            module.register_forward_hook(add_up)
        elif roles & {"sharded-norm", "sharded-group-norm"}:
            sharing = None
            if "sharded-group-norm" in roles:
                sharing = ranks_of_a_group(case.plan.stored[stored[0]].groups, rank, case.layout.tp)
            replace_means(module, partial(mean_over_ranks, case.mean_lengths[path], sharing))
        elif roles & {"vocab-parallel-embedding", "vocab-parallel-head"}:
            if isinstance(module, nn.Embedding):
                shard_embedding(module, rank)
            else:
                padding = max(case.plan.held[rank][name].get("pad_rows", 0) for name in stored)
                module.register_forward_hook(partial(gather_logits, case.layout.tp, padding))
        elif roles - {"column-parallel", "replicated"}:
            raise ValueError(f"{path} has a role that this proof doesn't know: {roles}")


def dequantise(case: Case, rank: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in place of the parts that they are stored as."""
    scheme = case.family.scheme
    if scheme is None:
        return tensors
    state = dict(tensors)
    for parameter, names in case.sources.items():
        if len(names) > 1:
            parts = {name.rpartition(".")[2]: state.pop(name) for name in names}
            starts = {name.rpartition(".")[2]: case.plan.held[rank][name]["boxes"][0]["start"] for name in names}
            state[parameter] = scheme.dequantise(parts, starts)
    return state


def run_model(case: Case, rank: int) -> Tensor:
    share = Share(rank, case.layout.tp)
    tensors = fill_absent(read_slices(case.folder, case.plan.held[rank]), case.plan, rank)
    config = case.family.rank_config(share, case.layout.expert_parallel)
    model = load(case.family.rank_class(share), config, dequantise(case, rank, tensors))
    connect(model, case, rank)
    with torch.no_grad():
        return model(**case.inputs, use_cache=False).logits


def run_rank(case: Case, rank: int, rendezvous: Path, answer: Connection) -> None:
    """A rank's process: sends its logits, or what went wrong."""
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(rendezvous), case.layout.tp)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=case.layout.tp, timeout=DEADLINE)
        answer.send(run_model(case, rank).numpy())
    except Exception as error:  # whatever it is, the parent reports it and ends the other ranks
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer.send(f"rank {rank}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def logits_of_ranks(case: Case) -> list[Tensor]:
    """Runs every rank in a process of its own; raises RuntimeError with the failure of the first that fails."""
    # Forked, so that none imports the libraries again. It is safe because torch has one thread here (see `main`).
    processes = multiprocessing.get_context("fork")
    started: dict[Connection, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for rank in range(case.layout.tp):
                receiver, sender = processes.Pipe(duplex=False)
                arguments = (case, rank, Path(scratch, "rendezvous"), sender)
                started[receiver] = processes.Process(target=run_rank, args=arguments, daemon=True)
                started[receiver].start()
                sender.close()
            return collect(list(started))
        finally:
            for process in started.values():
                process.kill()
                process.join()


def collect(receivers: list[Connection]) -> list[Tensor]:
    """What the ranks answer, in their order."""
    answers: dict[Connection, Tensor] = {}
    while len(answers) < len(receivers):
        ready = wait([receiver for receiver in receivers if receiver not in answers], DEADLINE.total_seconds())
        if not ready:
            raise RuntimeError(f"no rank answered in {DEADLINE.total_seconds():.0f} s")
        for receiver in ready:
            try:
                answer = receiver.recv()
            except EOFError as error:
                raise RuntimeError(f"rank {receivers.index(receiver)} died") from error
            if isinstance(answer, str):
                raise RuntimeError(answer)
            answers[receiver] = torch.from_numpy(answer)
    return [answers[receiver] for receiver in receivers]
