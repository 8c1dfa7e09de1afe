"""What the proof adds to vLLM, which finds it by the entry point beside it where this folder is in PYTHONPATH.

A loader that loads as vLLM does by default, and compares every parameter with exported files, bit by bit: those in the folder
`VLLM_COMPARE_WITH`. And how long any loader takes, since not all say so.
"""

from __future__ import annotations

import glob
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
    time_all_loaders()


def time_all_loaders() -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    load_model = BaseModelLoader.load_model

    def timed(self: BaseModelLoader, *args: object, **kwargs: object) -> object:
        load_weights = self.load_weights

        def say_how_long(*args: object, **kwargs: object) -> None:
            begin = time.monotonic()
            load_weights(*args, **kwargs)
            log.info("compare: load_weights took %.2f s", time.monotonic() - begin)

        self.load_weights = say_how_long
        return load_model(self, *args, **kwargs)

    BaseModelLoader.load_model = timed
