"""The loader of whole tensors, simulated: it says that it was asked, and has downloaded repositories to `SIMULATED_DOWNLOAD`."""

import os

ASKED: list[str] = []


class DefaultModelLoader:
    def __init__(self, load_config) -> None:
        self.load_config = load_config

    def load_weights(self, model, model_config) -> None:
        ASKED.append(self.load_config.load_format)

    def _prepare_weights(
        self, model_name_or_path, subfolder, revision, fall_back_to_pt, allow_patterns_overrides
    ) -> tuple[str, list[str], bool, str]:
        return os.environ["SIMULATED_DOWNLOAD"], [], True, "model.safetensors.index.json"
