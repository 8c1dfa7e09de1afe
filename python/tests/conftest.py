"""What the tests share: checkpoints that `transformers` wrote, and plans of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import shardwright

CHECKPOINTS = Path(__file__).parents[2] / "tests/fixtures/checkpoints"


@pytest.fixture
def checkpoint() -> Path:
    return CHECKPOINTS / "llama-odd-vocab-bf16"


@pytest.fixture
def planned(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(tp: int = 2, **options: object) -> Path:
        path = tmp_path / f"plan-{tp}.yaml"
        shardwright.plan(checkpoint, path, tp=tp, topology="host", **options)
        return path

    return make
