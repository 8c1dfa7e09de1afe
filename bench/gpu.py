"""Measures loading into GPUs against plain pinned copies, and prints one table.

    bench/gpu.sh                               # 8 GB, one GPU, five rounds
    bench/gpu.sh --gpus 4 --bytes 32e9 --rounds 3

Builds the binaries, makes a checkpoint in --dir unless it is there already, then runs the limit and the loads in turn, with the
files in the page cache. README.md beside this file says what is compared with what. Standard library only; Linux.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A round of one command is given up after this many seconds.
LONGEST = 600

# What the simulated driver of the tests calls its GPUs.
SIMULATED = "simcuda"

LOADS = {
    "load, not verified": ["--verify", "off"],
    "load, verified": ["--verify", "full"],
    "load, registered mappings": ["--verify", "off", "--registered"],
}


@dataclass
class Measured:
    """GB/s of each round, of one GPU, and seconds in all."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run(command: list[str], **more: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def say(text: str) -> None:
    print(text, file=sys.stderr)


def binary(name: str) -> str:
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / name)


def pinned_copy(byte_count: int) -> dict:
    return json.loads(run([binary("pinned_copy"), "--bytes", str(byte_count), "--rounds", "1"]))


def load(plan: Path, arguments: list[str]) -> tuple[float, float]:
    """GB/s of the slowest GPU until its last byte had arrived, and seconds in all, verification included."""
    printed = json.loads(run([binary("shardwright"), "load", str(plan), "--device", "cuda", "--json", *arguments]))
    slowest = max(printed["ranks"], key=lambda rank: rank["load_seconds"])
    return slowest["bytes"] / 1e9 / slowest["load_seconds"], printed["seconds"]


def hardware() -> list[str]:
    query = "name,driver_version,pcie.link.gen.current,pcie.link.width.current,memory.total"
    lines = []
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, check=False
        )
        lines += asked.stdout.strip().splitlines()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    lines.append(f"{datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}, {os.cpu_count()} cores")
    return lines


def two_ranks_on_one_gpu(plan: Path) -> str:
    """What NCCL says when two ranks, each a process, have the same GPU. That it refuses is no failure."""
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "0",
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": str(os.getpid()),
        }
        command = [binary("shardwright"), "load", str(plan), "--device", "cuda", "--patience", "60"]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=LONGEST)[0] for process in processes]
    if all(process.returncode == 0 for process in processes):
        return "two ranks on one GPU: " + outputs[0].strip().splitlines()[-1]
    return "two ranks on one GPU: NCCL does not allow it: " + outputs[0].strip().splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=1, choices=(1, 2, 4, 8), help="GPUs to load into (default: %(default)s)")
    parser.add_argument("--bytes", type=float, default=8e9, help="size of the checkpoint (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of everything (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()) / "shardwright-bench-gpu")
    arguments = parser.parse_args()
    rounds, wanted = max(1, arguments.rounds), int(arguments.bytes)

    say("building")
    run(["cargo", "build", "--release", "--locked", "--bin", "shardwright", "--bin", "pinned_copy"] + ["--workspace"], cwd=ROOT)
    checkpoint = arguments.dir / f"checkpoint-{wanted}"
    if not checkpoint.exists():
        say(f"making {checkpoint}")
        run([sys.executable, str(ROOT / "bench" / "checkpoint.py"), str(checkpoint), "--bytes", str(wanted)])
    plans = {}
    for tp in {arguments.gpus, 2}:
        plans[tp] = arguments.dir / f"plan-{tp}.yaml"
        run([binary("shardwright"), "plan", str(checkpoint), "--topology", "host", "--tp", str(tp), "-o", str(plans[tp])])
    plan = plans[arguments.gpus]
    per_gpu = wanted // arguments.gpus
    for file in checkpoint.glob("*.safetensors"):
        with file.open("rb") as data:
            while data.read(64 * 2**20):
                pass

    limit = Measured()
    loads = {name: Measured() for name in LOADS}
    gpu = ""
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        copied = pinned_copy(per_gpu)
        gpu = copied["gpu"]
        limit.rates.append(copied["best_gb_per_second"])
        limit.seconds.append(copied["best_seconds"])
        for name, more in LOADS.items():
            rate, seconds = load(plan, more)
            loads[name].rates.append(rate)
            loads[name].seconds.append(seconds)

    if SIMULATED in gpu.lower():
        print("SIMULATED DRIVER: these figures mean nothing; they show that the benchmark runs\n")
    for line in [f"{arguments.gpus} x {gpu}", *hardware()]:
        print(line)
    print(f"{wanted / 1e9:.1f} GB, tp {arguments.gpus}, warm page cache, medians of {rounds} rounds in turn\n")
    print(f"{'':28} {'GB/s a GPU':>10} {'of the limit':>12} {'s in all':>9}")
    print(f"{'plain pinned copy (limit)':28} {statistics.median(limit.rates):10.2f} {'1.00':>12} {statistics.median(limit.seconds):9.2f}")
    for name, measured in loads.items():
        ratio = statistics.median(rate / most for rate, most in zip(measured.rates, limit.rates))
        median = statistics.median(measured.rates)
        print(f"{name:28} {median:10.2f} {ratio:12.2f} {statistics.median(measured.seconds):9.2f}")
    plain, full = loads["load, not verified"].seconds, loads["load, verified"].seconds
    overhead = statistics.median(verified / off - 1 for verified, off in zip(full, plain))
    print(f"\nverification: {100 * overhead:.0f} % on top of a load")
    print(two_ranks_on_one_gpu(plans[2]))


if __name__ == "__main__":
    main()
