"""The plugin for vLLM, in processes of an engine that is simulated (`simulated_vllm/`); tests/engines/ has the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardwright

pytest.importorskip("torch")
HERE = Path(__file__).parent
CHECKPOINT = HERE.parents[1] / "tests/fixtures/checkpoints/llama-odd-vocab-bf16"


def workers(tmp_path: Path, tp: int, way: str, planned_for: int | None = None, pp: int = 1) -> list[str]:
    """What the workers print, rank by rank."""
    plan, exported = tmp_path / "plan.yaml", tmp_path / "exported"
    shardwright.plan(CHECKPOINT, plan, tp=tp, pp=pp, topology="host")
    shardwright.export(plan, exported, format="sharded-state", engine="vllm")
    if planned_for is not None:
        shardwright.plan(CHECKPOINT, plan, tp=planned_for, topology="host")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(tp * pp)]
    command = [*launch, str(HERE / "vllm_worker.py"), str(CHECKPOINT), str(exported), way, str(plan)]
    path = os.pathsep.join(filter(None, [str(HERE / "simulated_vllm"), os.environ.get("PYTHONPATH")]))
    simulated = {"PYTHONPATH": path, "SIMULATED_PP": str(pp), "SIMULATED_LAYERS": ",".join(["1"] * pp)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=os.environ | simulated
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(lines) == tp * pp, done.stdout
    return [done.stdout, *sorted(lines)]


@pytest.mark.parametrize("tp", [1, 2])
def test_parameters_are_those_of_the_exported_files(tp, tmp_path):
    said, *ranks = workers(tmp_path, tp, "plain")
    assert all("parameters are right, 0 wrong" in line for line in ranks), ranks
    assert said.count("nothing fell back to whole tensors") == tp


def test_pipeline_stages_are_those_of_the_engine(tmp_path):
    said, *ranks = workers(tmp_path, 2, "plain", pp=2)
    assert all("0 wrong" in line for line in ranks), ranks
    assert said.count("nothing fell back to whole tensors") == 4


def test_a_repository_is_read_where_vllm_has_downloaded_it(tmp_path):
    said, *ranks = workers(tmp_path, 2, "repository")
    assert all("0 wrong" in line for line in ranks), ranks
    assert said.count("nothing fell back to whole tensors") == 2


def test_a_plan_that_was_made_before_is_taken(tmp_path):
    _, *ranks = workers(tmp_path, 2, "plan")
    assert all("0 wrong" in line for line in ranks), ranks


def test_parameters_of_another_dtype_are_cast(tmp_path):
    _, *ranks = workers(tmp_path, 2, "cast")
    assert all("0 wrong" in line for line in ranks), ranks


def test_one_worker_that_does_not_know_its_parameters_has_all_load_whole_tensors(tmp_path):
    said, *ranks = workers(tmp_path, 2, "other-shape")
    assert all("whole tensors, ['auto']" in line for line in ranks), ranks
    assert "loading whole tensors as vLLM does by default" in said


def test_experts_that_are_dealt_otherwise_are_left_to_vllm(tmp_path):
    said, *ranks = workers(tmp_path, 2, "round-robin")
    assert all("whole tensors, ['auto']" in line for line in ranks), ranks
    assert said.count("experts are not dealt in runs") == 2


def test_what_was_asked_for_by_name_and_is_wrong_is_an_error(tmp_path):
    _, *ranks = workers(tmp_path, 2, "plan", planned_for=4)
    assert all("ValueError" in line and "is for 4 ranks, and the engine has 2" in line for line in ranks), ranks


def test_options_that_do_not_exist_are_named(tmp_path):
    _, *ranks = workers(tmp_path, 1, "option")
    assert "unknown options ['speed']" in ranks[0]
