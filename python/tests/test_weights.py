"""Weights as tensors: the bytes of the checkpoint's slices, without a copy, for as long as somebody looks."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file

import shardwright

torch = pytest.importorskip("torch")
from safetensors.torch import load_file as load_torch  # noqa: E402


def whole(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_torch(file).items()}


def cut(tensor: torch.Tensor, held: dict) -> torch.Tensor:
    """The boxes of a slice, one after the other along the dimension that is cut, and rows of zeros."""
    boxes = [tensor[tuple(slice(a, b) for a, b in zip(box["start"], box["stop"]))] for box in held["boxes"]]
    shape = list(held["shape"])
    dims = [dim for dim, size in enumerate(shape) if boxes[0].shape[dim] != size]
    joined = torch.cat(boxes, dim=dims[0] if dims and len(boxes) > 1 else 0) if len(boxes) > 1 else boxes[0]
    padding = held.get("pad_rows", 0)
    if padding:
        joined = torch.cat([joined, torch.zeros(padding, *joined.shape[1:], dtype=joined.dtype)])
    return joined


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_each_rank_has_the_slices_of_the_checkpoint(tp, checkpoint, planned):
    plan = planned(tp)
    tensors = whole(checkpoint)
    for rank in range(tp):
        held = shardwright.slices(plan, rank)["tensors"]
        weights = shardwright.load(plan, rank, device="host")
        assert set(weights) == set(held) and len(weights) == len(held)
        assert weights.report["verified_tensors"] == len(held)
        for name, tensor in weights.items():
            view = torch.from_dlpack(tensor)
            assert tuple(view.shape) == tensor.shape and tensor.device == "cpu"
            assert torch.equal(view, cut(tensors[name], held[name])), (rank, name)
            assert tensor.nbytes == view.numel() * view.element_size()


def test_tensors_come_in_the_order_of_the_layers(planned):
    names = [tensor.name for tensor in shardwright.stream(planned(2), 1, device="host")]
    assert "embed_tokens" in names[0]
    layers = [int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name]
    assert layers == sorted(layers)


def test_an_exports_folder_is_loaded_by_the_same_names(checkpoint, planned, tmp_path):
    plan = planned(2)
    shardwright.export(plan, tmp_path / "exported")
    own, exported = (shardwright.load(path, 1, device="host") for path in (plan, tmp_path / "exported"))
    assert set(own) == set(exported)
    for name in own:
        assert torch.equal(torch.from_dlpack(own[name]), torch.from_dlpack(exported[name]))


def test_numpy_sees_what_lies_there(tmp_path):
    checkpoint = Path(__file__).parents[2] / "tests/fixtures/checkpoints/mistral-f32"
    plan = tmp_path / "plan.yaml"
    shardwright.plan(checkpoint, plan, tp=1, topology="host")
    weights = shardwright.load(plan, 0, device="host")
    tensors = {name: it for file in checkpoint.glob("*.safetensors") for name, it in load_file(file).items()}
    for name, tensor in weights.items():
        assert numpy.array_equal(numpy.from_dlpack(tensor), tensors[name])


def empty(held: dict) -> dict[str, torch.Tensor]:
    return {name: torch.full(it["shape"], 7, dtype=torch.bfloat16) for name, it in held.items()}


def test_tensors_are_loaded_right_into_those_that_are_given(checkpoint, planned):
    plan = planned(2)
    tensors = whole(checkpoint)
    held = shardwright.slices(plan, 1)["tensors"]
    given = empty(held)
    # Some as bytes, and some left to the loader.
    left_out = sorted(given)[::3]
    into = {name: tensor for name, tensor in given.items() if name not in left_out}
    into |= {name: into[name].view(torch.uint8) for name in sorted(into)[::2]}
    weights = shardwright.load(plan, 1, into=into)
    assert weights.report["verified_tensors"] == len(held) == len(weights)
    for name, tensor in weights.items():
        arrived = torch.from_dlpack(tensor)
        assert torch.equal(arrived, cut(tensors[name], held[name])), name
        assert (arrived.data_ptr() == given[name].data_ptr()) == (name in into), name
        assert torch.equal(given[name], arrived) == (name in into), name


def test_what_cannot_be_loaded_into_is_refused_by_name(planned):
    plan = planned(2)
    held = shardwright.slices(plan, 0)["tensors"]
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = held[name]["shape"]

    def refused(tensor, exception, words, **options):
        with pytest.raises(exception, match=words):
            shardwright.load(plan, 0, into={name: tensor}, **options)

    of = torch.bfloat16
    refused(torch.zeros(columns, rows, dtype=of).T, BufferError, f"{name}: its rows do not lie")
    refused(torch.zeros(rows, columns, dtype=torch.float16), shardwright.UsageError, "is loaded as BF16, .* for F16")
    refused(torch.zeros(rows + 1, columns, dtype=of), shardwright.UsageError, "and the memory for it has")
    refused(torch.zeros(rows, columns, dtype=of), ValueError, "device is cuda, .* are on host", device="cuda")
    refused("nothing", AttributeError, "__dlpack__")
    fixed = numpy.zeros(rows * columns * 2, dtype=numpy.uint8)
    fixed.flags.writeable = False
    refused(fixed, BufferError, "(?i)readonly")
    with pytest.raises(shardwright.UsageError, match="memory for `other`, of which rank 0 holds nothing"):
        shardwright.load(plan, 0, into={"other": torch.zeros(1)})
    other = "model.layers.1.mlp.up_proj.weight"
    both_at_once = torch.zeros(rows, columns, dtype=of)
    with pytest.raises(ValueError, match=f"{name} and {other} are to be loaded into the same memory"):
        shardwright.load(plan, 0, into={name: both_at_once, other: both_at_once})
    taken = torch.zeros(rows, columns, dtype=of)

    class Twice:
        capsule = taken.__dlpack__()

        def __dlpack__(self):
            return self.capsule

    shardwright.load(plan, 0, into={name: Twice()})
    refused(Twice(), BufferError, "taken already")


def test_memory_that_was_given_is_kept_until_nobody_looks(planned):
    class Given(numpy.ndarray):
        pass

    plan = planned(1)
    held = shardwright.slices(plan, 0)["tensors"]
    name = "model.embed_tokens.weight"
    given = numpy.zeros(2 * int(numpy.prod(held[name]["shape"])), dtype=numpy.uint8).view(Given)
    seen = weakref.ref(given)
    weights = shardwright.load(plan, 0, into={name: given})
    view = torch.from_dlpack(weights[name])
    del given, weights
    gc.collect()
    assert seen() is not None and view.float().abs().sum() > 0
    del view
    gc.collect()
    assert seen() is None


def both(plan: Path, all_reduce, **options) -> list:
    """What two ranks end with that meet in this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    ended: list = [None, None]

    def one(rank: int) -> None:
        try:
            ended[rank] = shardwright.load(
                plan, rank, device="host", rendezvous=place, all_reduce=lambda *it: all_reduce(rank, *it), **options
            )
        except shardwright.ShardwrightError as error:
            ended[rank] = error

    threads = [threading.Thread(target=one, args=[rank]) for rank in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return ended


def test_ranks_verify_over_what_connects_them(planned):
    brought: list = [None, None]
    barrier = threading.Barrier(2)
    heard = []

    def all_reduce(rank: int, numbers: bytearray, how: str) -> None:
        values = numpy.frombuffer(numbers, dtype=numpy.int64)
        brought[rank] = values.copy()
        barrier.wait(60)
        values[:] = {"sum": numpy.add, "min": numpy.minimum, "max": numpy.maximum}[how](*brought)
        heard.append(how)
        barrier.wait(60)

    weights = both(planned(2), all_reduce)
    assert [it.report["verified_tensors"] for it in weights] == [len(weights[0])] * 2
    assert len(heard) >= 4 and "sum" in heard

    def wrong(rank: int, numbers: bytearray, how: str) -> None:
        all_reduce(rank, numbers, how)
        numbers[-1] ^= 1 if how == "sum" else 0

    assert all(isinstance(error, shardwright.ShardwrightError) for error in both(planned(2), wrong))


def test_a_group_that_breaks_is_every_ranks_error(planned):
    def broken(rank: int, numbers: bytearray, how: str) -> None:
        raise RuntimeError("the wire was cut")

    errors = both(planned(2), broken)
    assert all("could not sum up: RuntimeError: the wire was cut" in str(error) for error in errors), errors


def test_torch_is_not_needed(tmp_path):
    code = f"""
import sys
sys.modules["torch"] = None
import numpy, shardwright
checkpoint = {str(Path(__file__).parents[2] / "tests/fixtures/checkpoints/mistral-f32")!r}
shardwright.plan(checkpoint, "plan.yaml", tp=2, topology="host")
print(sum(numpy.from_dlpack(tensor).size for tensor in shardwright.load("plan.yaml", 1).values()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert int(done.stdout) > 0, done.stderr


def resident() -> int:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def test_memory_goes_with_the_last_view(tmp_path):
    size = 256 << 20
    checkpoint = tmp_path / "large"
    checkpoint.mkdir()
    from safetensors.torch import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(size // 4096 // 4, 4096)}, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text('{"model_type": "unknown", "num_hidden_layers": 1, "hidden_size": 4096}')
    plan = tmp_path / "plan.yaml"
    shardwright.plan(checkpoint, plan, tp=1, topology="host")
    before = resident()
    weights = shardwright.load(plan, 0, device="host", verify="off")
    name = next(iter(weights))
    view = torch.from_dlpack(weights[name])
    part = view[:1]
    del weights, view
    gc.collect()
    assert resident() - before > size // 2, "a view keeps it"
    assert part.sum().item() == 4096
    del part
    gc.collect()
    assert resident() - before < size // 2, "nobody looks any more"


def test_a_capsule_is_taken_once(planned):
    tensor = next(shardwright.stream(planned(2), 0, device="host"))
    capsule = tensor.__dlpack__()
    assert torch.utils.dlpack.from_dlpack(capsule).numel() > 0
    with pytest.raises(Exception, match="(?i)capsule|dltensor"):
        torch.utils.dlpack.from_dlpack(capsule)
    # One that nobody takes is given back.
    del capsule
    tensor.__dlpack__()
    with pytest.raises(BufferError, match="is not copied"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="lent, not copied"):
        tensor.__dlpack__(copy=True)


def test_what_fails_on_the_way_is_an_exception_of_the_iterator(checkpoint, planned, tmp_path):
    plan = planned(2)
    with pytest.raises(shardwright.UsageError, match="rank 7 does not exist"):
        list(shardwright.stream(plan, 7, device="host"))
    with pytest.raises(shardwright.UsageError, match="device"):
        shardwright.stream(plan, 0, device="tape")
    with pytest.raises(shardwright.BadInput):
        shardwright.load(plan, 0, checkpoint=tmp_path / "nowhere", device="host")


def test_progress_is_heard(planned):
    heard: list[int] = []
    weights = shardwright.load(planned(2), 0, device="host", progress=heard.append)
    assert len(heard) == len(weights) and heard == sorted(heard) and heard[-1] == weights.report["bytes"]
