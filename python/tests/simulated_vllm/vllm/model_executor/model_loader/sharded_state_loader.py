"""The loader of ranks' files, simulated: of its state, names of tensors that share memory are not told apart."""


class ShardedStateLoader:
    @staticmethod
    def _filter_subtensors(state):
        return dict(state)
