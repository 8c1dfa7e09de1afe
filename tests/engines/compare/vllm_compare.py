"""What the proof adds to vLLM, which finds it by the entry point beside it where this folder is in PYTHONPATH.

A loader that loads as vLLM does by default, and compares every parameter with exported files, bit by bit: those in the folder
`VLLM_COMPARE_WITH`. And of any loader how long it takes, since not all say so, and the digest of what it has loaded.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import time

log = logging.getLogger("vllm.compare")


def register() -> None:
    import torch
    from safetensors import safe_open
    from vllm.distributed import get_world_group
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    class CompareLoader(DefaultModelLoader):
        def __init__(self, load_config: object) -> None:
            load_config.load_format = "auto"
            super().__init__(load_config)

        def load_weights(self, model: torch.nn.Module, model_config: object) -> None:
            super().load_weights(model, model_config)
            rank = get_world_group().rank_in_group
            mine = ShardedStateLoader._render_default_pattern(part="*")
            state = ShardedStateLoader._filter_subtensors(model.state_dict())
            wrong, names = [], set()
            for path in glob.glob(os.path.join(os.environ["VLLM_COMPARE_WITH"], mine)):
                with safe_open(path, "pt") as file:
                    for name in file.keys():
                        names.add(name)
                        own, other = state.get(name), file.get_tensor(name)
                        if own is None or own.shape != other.shape or not torch.equal(own, other.to(own.dtype)):
                            wrong.append(name)
            wrong += sorted(set(state) - names)
            log.info("compare: rank %d: %d of %d parameters differ %s", rank, len(wrong), len(state), wrong[:3])

    register_model_loader("compare")(CompareLoader)
    watch_all_loaders()
    make_intermediate_tensors()


def make_intermediate_tensors() -> None:
    """What a stage receives has a place from the first warm-up on, and on CPUs that are to compile nothing vLLM 0.32 skips that."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    gather = GPUModelRunner.sync_and_gather_intermediate_tensors

    def with_a_place(self: GPUModelRunner, *args: object, **kwargs: object) -> object:
        if self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return gather(self, *args, **kwargs)

    GPUModelRunner.sync_and_gather_intermediate_tensors = with_a_place


def watch_all_loaders() -> None:
    import torch
    from vllm.distributed import get_world_group
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    load_model = BaseModelLoader.load_model

    def watched(self: BaseModelLoader, *args: object, **kwargs: object) -> object:
        load_weights = self.load_weights

        def load_and_say(model: torch.nn.Module, *args: object, **kwargs: object) -> None:
            begin = time.monotonic()
            load_weights(model, *args, **kwargs)
            log.info("compare: load_weights took %.2f s", time.monotonic() - begin)
            if "VLLM_COMPARE_DIGEST" in os.environ:
                digest, state = hashlib.sha256(), model.state_dict()
                for name, tensor in sorted(state.items()):
                    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                    digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
                rank = get_world_group().rank_in_group
                log.info("compare: rank %d has %d tensors, %s", rank, len(state), digest.hexdigest())

        self.load_weights = load_and_say
        return load_model(self, *args, **kwargs)

    BaseModelLoader.load_model = watched
