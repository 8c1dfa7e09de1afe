"""Modules and meshes that are filled from a plan, and a forward pass over two ranks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import shardwright

torch = pytest.importorskip("torch")
import shardwright.torch  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples/forward.py"


def test_a_module_is_filled_and_what_does_not_fit_is_named(planned):
    weights = shardwright.load(planned(2), 1, device="host")
    name = "model.layers.0.mlp.up_proj.weight"
    module = torch.nn.Module()
    shape = weights[name].shape
    module.weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    missing = shardwright.torch.fill(module, [weights[name]], prefix=name.removesuffix("weight"))
    assert missing == [] and torch.equal(module.weight, torch.from_dlpack(weights[name]))
    with pytest.raises(KeyError, match="no parameter for"):
        shardwright.torch.fill(module, weights)
    module.weight = torch.nn.Parameter(torch.zeros(shape[0] + 1, *shape[1:]))
    with pytest.raises(ValueError, match="this rank holds"):
        shardwright.torch.fill(module, [weights[name]], prefix=name.removesuffix("weight"))
    module.other = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(KeyError, match="no weights for"):
        shardwright.torch.fill(module, [])
    assert set(shardwright.torch.tensors(weights)) == set(weights)


def test_a_module_is_loaded_into_without_a_copy(planned):
    plan = planned(2)
    slices = shardwright.slices(plan, 1)
    module = torch.nn.Module()
    for number, (name, held) in enumerate(sorted(slices["tensors"].items())):
        # One is of another dtype: it is cast on the way.
        dtype = torch.float32 if number == 3 else torch.bfloat16
        parent = module
        *path, last = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(last, torch.nn.Parameter(torch.zeros(held["shape"], dtype=dtype)))
    into = shardwright.torch.memory(module, slices)
    assert len(into) == len(slices["tensors"]) - 1
    places = {name: parameter.data_ptr() for name, parameter in module.named_parameters()}
    assert shardwright.torch.fill(module, shardwright.stream(plan, 1, device="host", into=into)) == []
    expected = shardwright.torch.tensors(shardwright.load(plan, 1, device="host"))
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == places[name]
        assert torch.equal(parameter, expected[name].to(parameter.dtype)), name


@pytest.mark.parametrize("name", ["llama-bf16", "mistral-f32"])
def test_two_ranks_compute_what_transformers_computes(name):
    checkpoint = Path(__file__).parents[2] / "tests/fixtures/checkpoints" / name
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(EXAMPLE), str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "next token:" in done.stdout
    # Where there is something to compare with, the example compares.
    assert importlib.util.find_spec("transformers") is None or "the same logits" in done.stdout


def test_a_mesh_gets_dtensors(tmp_path):
    script = tmp_path / "mesh.py"
    script.write_text(
        f"""
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
import shardwright, shardwright.torch
dist.init_process_group("gloo")
fixtures, plans = {str(Path(__file__).parents[2] / "tests/fixtures/checkpoints")!r}, {str(tmp_path)!r}
checkpoint = fixtures + "/mistral-f32"
plan, odd = plans + "/plan.yaml", plans + "/odd.yaml"
if dist.get_rank() == 0:
    shardwright.plan(checkpoint, plan, tp=2, topology="host")
    shardwright.plan(fixtures + "/llama-odd-vocab-bf16", odd, tp=2, topology="host")
dist.barrier()
mesh = init_device_mesh("cpu", (2,))
weights = shardwright.load(plan, dist.get_rank(), device="host")
tensors = shardwright.torch.sharded(weights, plan, mesh)
from safetensors.torch import load_file
import glob
whole = {{}}
for file in glob.glob(checkpoint + "/*.safetensors"):
    whole |= load_file(file)
for name, tensor in tensors.items():
    assert torch.equal(tensor.full_tensor(), whole[name]), name
refused = set()
for name, tensor in shardwright.load(odd, dist.get_rank(), device="host").items():
    try:
        shardwright.torch.sharded({{name: tensor}}, odd, mesh)
    except ValueError:
        refused.add(name)
# Rows that fill up, and biases that one rank adds.
filled = {{"model.embed_tokens.weight", "lm_head.weight"}}
lone = {{f"model.layers.{{layer}}.{{it}}.bias" for layer in range(2) for it in ("self_attn.o_proj", "mlp.down_proj")}}
assert refused == filled | (lone if dist.get_rank() == 0 else set()), refused
print("all", len(tensors))
dist.destroy_process_group()
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("all") == 2
