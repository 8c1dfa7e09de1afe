"""One worker of an engine that is simulated, started by torchrun: `vllm_worker.py CHECKPOINT EXPORTED WAY`.

It makes the parameters of a model, all ones, has the plugin load them, and compares them with the files that `shardwright export` wrote
for its rank. Prints what came of it.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from vllm.distributed import get_pp_group
from vllm.model_executor.model_loader import LOADERS
from vllm.model_executor.model_loader.default_loader import ASKED

import shardwright.vllm


def say(text: str) -> None:
    """Prints a line at once, whatever the other workers print meanwhile."""
    os.write(1, f"\n{text}\n".encode())


class Model(torch.nn.Module):
    """Parameters by their names in the engine, which have dots in them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            parent: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))


def main(checkpoint: str, exported: str, way: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    expected = {}
    pp = get_pp_group().world_size
    tp = world // pp
    mine = f"rank-{rank}" if pp == 1 else f"pp-{rank // tp}-tp-{rank % tp}"
    for file in sorted(Path(exported).glob(f"model-{mine}-part-*.safetensors")):
        expected |= load_file(file)
    dtype = torch.float16 if way == "cast" else None
    state = {name: torch.ones(tensor.shape, dtype=dtype or tensor.dtype) for name, tensor in expected.items()}
    if way == "other-shape" and rank == world - 1:
        name = next(iter(state))
        state[name] = torch.ones(*state[name].shape, 2)
    model = Model(state)
    options = {"plan": sys.argv[4]} if way == "plan" else {"speed": 9} if way == "option" else {}

    shardwright.vllm.register()
    parallel = SimpleNamespace(
        pipeline_parallel_size=pp,
        data_parallel_size=1,
        enable_expert_parallel=way == "round-robin",
        expert_placement_strategy="round_robin" if way == "round-robin" else "linear",
    )
    try:
        loader = LOADERS["shardwright"](SimpleNamespace(load_format="shardwright", model_loader_extra_config=options))
        config = SimpleNamespace(parallel_config=parallel)
        if way == "repository":
            os.environ["SIMULATED_DOWNLOAD"], checkpoint = checkpoint, "somebody/some-model"
        text = SimpleNamespace(num_hidden_layers=2)
        loader.load_model(config, SimpleNamespace(model=checkpoint, revision=None, hf_text_config=text), model)
    except Exception as error:
        say(f"rank {rank}: {type(error).__name__}: {error}")
        return
    if ASKED:
        say(f"rank {rank}: whole tensors, {ASKED}")
        return
    found = model.state_dict()
    wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor.to(found[name].dtype))]
    say(f"rank {rank}: {len(expected) - len(wrong)} parameters are right, {len(wrong)} wrong {wrong[:3]}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
    # All have said what came of it. Threads of the process group, which may abort a process that tidies up, end with it.
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
