"""How layers are cut into pipeline stages, simulated: `SIMULATED_LAYERS` says how many each has."""

from __future__ import annotations

import os


def get_pp_indices(layers: int, stage: int, stages: int) -> tuple[int, int]:
    counts = [int(count) for count in os.environ["SIMULATED_LAYERS"].split(",")]
    assert len(counts) == stages and sum(counts) == layers
    return sum(counts[:stage]), sum(counts[: stage + 1])
