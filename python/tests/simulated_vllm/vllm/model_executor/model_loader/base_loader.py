"""What all loaders have, simulated: the model is there already."""


class BaseModelLoader:
    def __init__(self, load_config) -> None:
        self.load_config = load_config

    def load_model(self, vllm_config, model_config, model):
        self.load_weights(model, model_config)
        return model
