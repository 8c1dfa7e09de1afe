"""A loader for the proof: loads as vLLM does by default, and compares every parameter with exported files, bit by bit.

vLLM finds it by the entry point beside it where this folder is in PYTHONPATH. `VLLM_COMPARE_WITH` is the folder of the files.
"""

from __future__ import annotations

import glob
import logging
import os

log = logging.getLogger("vllm.compare")


def register() -> None:
    import torch
    from safetensors import safe_open
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    class CompareLoader(DefaultModelLoader):
        def __init__(self, load_config: object) -> None:
            load_config.load_format = "auto"
            super().__init__(load_config)

        def load_weights(self, model: torch.nn.Module, model_config: object) -> None:
            super().load_weights(model, model_config)
            rank = get_tensor_model_parallel_rank()
            state = ShardedStateLoader._filter_subtensors(model.state_dict())
            wrong, names = [], set()
            for path in glob.glob(os.path.join(os.environ["VLLM_COMPARE_WITH"], f"model-rank-{rank}-part-*")):
                with safe_open(path, "pt") as file:
                    for name in file.keys():
                        names.add(name)
                        own, other = state.get(name), file.get_tensor(name)
                        if own is None or own.shape != other.shape or not torch.equal(own, other.to(own.dtype)):
                            wrong.append(name)
            wrong += sorted(set(state) - names)
            log.info("compare: rank %d: %d of %d parameters differ %s", rank, len(wrong), len(state), wrong[:3])

    register_model_loader("compare")(CompareLoader)
