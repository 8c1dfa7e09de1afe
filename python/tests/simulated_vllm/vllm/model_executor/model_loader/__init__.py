"""Loaders by the names of their formats, simulated."""

LOADERS: dict[str, type] = {}


def register_model_loader(name: str):
    def register(loader: type) -> type:
        LOADERS[name] = loader
        return loader

    return register
