"""Compares exported files with what SGLang holds of a plain checkpoint, and has SGLang load them; without a GPU.

    tests/engines/run_sglang.sh [--dir DIR] [--families NAME,…] [--tp 1,2]

Each rank is a process that builds SGLang's own model on the CPU, over gloo. Its default loader fills one model from the plain checkpoint, its
`sharded_state` loader another one from the exported files. Two questions: are all tensors of the first, as `sharded_state` looks at them,
in the files and nothing else, bit by bit; is all that the second holds the same, also what SGLang derives from weights. The exit code is 1
where an answer is no. Nothing is computed with the models: no tokens.

SGLang's models, parameters, weight loaders and the choice among them are its own. What stands in for something else:

- packages that only run on GPUs, `STUBS`, unless they are installed: modules in which any name exists and does nothing;
- the GPU: `torch.cuda` says that there is an H100, because SGLang asks it how to lay out weights. They lie in the machine's memory;
- NCCL and SGLang's own all-reduce, which are left out.

It cannot be called `sglang.py`: Python looks for modules beside a script first.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 600

sys.path.insert(0, str(HERE))
import checkpoints  # noqa: E402
from prove import Case, table  # noqa: E402

STUBS = {"cutlass", "deep_gemm", "flashinfer", "sgl_kernel", "torchao"}

# Beside those of checkpoints.py: tied heads, which every class of SGLang ties by itself, and biases without those of the MLP, which it drops.
BASE = checkpoints.SIZES | checkpoints.HEADS
TIED = {"tie_word_embeddings": True}
MORE = {
    "llama-attention-biases": ("llama", BASE | {"attention_bias": True}),
    "qwen2-tied": ("qwen2", checkpoints.SIZES | TIED),
    "qwen3-tied": ("qwen3", BASE | TIED),
    "phi3-tied": ("phi3", checkpoints.SIZES | TIED | {"pad_token_id": 0}),
}
# What SGLang wants of a configuration that published ones have, and transformers does not write.
PUBLISHED = {"deepseek_v3": {"moe_layer_freq": 1, "scoring_func": "sigmoid"}}
FAMILIES = (
    ["llama", "llama-tied", "llama-attention-biases", "qwen2", "qwen2-tied", "qwen3", "qwen3-tied", "mistral"]
    + ["phi3", "phi3-tied", "gemma3", "mixtral", "qwen3_moe", "deepseek_v3"]
)
WITH_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3")


class Nothing:
    """Any name of a stub: it has all attributes, is no base of a class, and calling it gives what it decorates or another one."""

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *args: object, **kwargs: object) -> object:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else Nothing()

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()


class Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".")[0] in STUBS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def pretend_gpu() -> None:
    """Has `torch.cuda` answer as with an H100, and its streams and events do nothing."""
    import torch

    h100 = types.SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20
    )
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": h100.name,
        "get_device_capability": (h100.major, h100.minor),
        "get_device_properties": h100,
        "mem_get_info": (79 << 30, 80 << 30),
        "set_device": None,
        "synchronize": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.Stream = torch.cuda.Event = type("Nothing", (), {"__init__": lambda *_, **__: None})
    torch.version.cuda = torch.version.cuda or "13.0"


def held(model: object) -> dict:
    """All tensors of a model: parameters, buffers, and what modules have beside them."""
    import torch

    found = {}
    for path, module in model.named_modules():
        for name, value in (module._parameters | module._buffers | vars(module)).items():
            if isinstance(value, torch.Tensor):
                found[f"{path}.{name}"] = value
    return found


def same(one: object, other: object) -> bool:
    import torch

    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(it.detach().contiguous().view(bits[it.element_size()]) for it in (one, other)))


def rank(checkpoint: str, files: str, number: int, tp: int, ep: int, port: int) -> dict:
    """What differs on this rank between a plain load, the exported files, and a load of these."""
    sys.meta_path.append(Stubs())
    pretend_gpu()
    from safetensors import safe_open
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import parallel_state
    from sglang.srt.distributed.device_communicators import pynccl
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.model_loader import get_model
    from sglang.srt.model_loader.loader import ShardedStateLoader
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    options = ServerArgs(model_path=checkpoint, tp_size=tp, ep_size=ep, skip_tokenizer_init=True, dtype="bfloat16")
    publish(options, role="scheduler", ranks=SpawnRanks(world_rank=number, gpu_id=number))
    initialize_moe_config()
    # Ranks talk over the CPU.
    parallel_state.is_cuda_alike = lambda: False
    parallel_state.set_custom_all_reduce(False)
    pynccl.PyNcclCommunicator = lambda **_: None
    address = f"tcp://127.0.0.1:{port}"
    parallel_state.init_distributed_environment(tp, number, address, number, "gloo")
    parallel_state.initialize_model_parallel(backend="gloo")
    initialize_dp_attention(options)

    def loaded(folder: str, load_format: str) -> object:
        config = ModelConfig(model_path=folder, dtype="bfloat16")
        load = LoadConfig(load_format=load_format)
        return get_model(model_config=config, load_config=load, device_config=DeviceConfig("cpu"))

    plain = loaded(checkpoint, "auto")
    state = ShardedStateLoader._filter_subtensors(plain.state_dict())
    wrong, names = [], set()
    for path in Path(files).glob(ShardedStateLoader.DEFAULT_PATTERN.format(rank=number, part="*")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                names.add(name)
                # The loader casts what it copies: DeepSeek's correction biases are in single precision, whatever is stored.
                own, other = state.get(name), file.get_tensor(name)
                if own is None or not same(own, other.to(own.dtype)):
                    wrong.append(name)
    wrong += sorted(set(state) - names)
    try:
        ours, theirs = held(loaded(files, "sharded_state")), held(plain)
        other = sorted(name for name in ours | theirs if not same(ours.get(name), theirs.get(name)))
        refused = None
    except (KeyError, RuntimeError, ValueError) as error:
        other, refused = [], repr(error)
    kind = type(plain).__name__
    return {"model": kind, "count": len(state), "wrong": wrong, "other": other, "refused": refused}


def on_all_ranks(model: Path, files: Path, tp: int, ep: int) -> list[dict | str]:
    """What each rank found; the end of its log where it failed."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        answers = [Path(folder) / f"{number}.json" for number in range(tp)]
        logs = [(Path(folder) / f"{number}.log").open("w+") for number in range(tp)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", json.dumps([str(model), str(files), number, tp, ep, port]), answer],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            for number, (answer, log) in enumerate(zip(answers, logs))
        ]
        try:
            for child in children:
                child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for child in children:
                child.kill()
                child.wait()
        found = []
        for answer, log in zip(answers, logs):
            log.seek(0)
            found.append(json.loads(answer.read_text()) if answer.exists() else log.read().strip()[-300:])
            log.close()
        return found


def verdict(found: list[dict | str], part: str) -> str:
    for number, answer in enumerate(found):
        if isinstance(answer, str):
            return f"FAILS: rank {number}: {answer.splitlines()[-1] if answer else 'says nothing'}"
        if part == "other" and answer["refused"]:
            return f"FAILS: rank {number}: {answer['refused'][:160]}"
        if answer[part]:
            return f"{len(answer[part])} DIFFER on rank {number}: {', '.join(answer[part][:3])}"
    return "same"


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        Path(sys.argv[3]).write_text(json.dumps(rank(*json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()) / "shardwright-sglang")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--tp", default="1,2")
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    checkpoints.FAMILIES |= MORE
    rows = []
    for family in arguments.families.split(","):
        model = checkpoints.write(arguments.dir, family)
        config = model / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | PUBLISHED.get(family, {}), indent=2))
        for tp in map(int, arguments.tp.split(",")):
            for ep in [1, tp] if family in WITH_EXPERTS and tp > 1 else [1]:
                case = Case(family, tp, experts=ep > 1)
                try:
                    found = on_all_ranks(model, case.exported(arguments.dir, model, "sglang"), tp, ep)
                except RuntimeError as refused:
                    found = [str(refused)]
                first = found[0]
                count = "-" if isinstance(first, str) else str(first["count"])
                rows.append([case.label(), str(tp), count, verdict(found, "wrong"), verdict(found, "other")])
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    head = ["family", "tp", "tensors", "all parameters", "loaded by sharded_state"]
    table("Exported files against what SGLang holds of a plain load, bit by bit", head, rows)
    sys.exit(0 if all(row[3:] == ["same", "same"] for row in rows) else 1)


if __name__ == "__main__":
    main()
