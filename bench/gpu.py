"""Measures loads into GPUs against a plain pinned copy, and what verifying costs, and prints one table.

    bench/gpu.sh                                  # 8 GiB into all GPUs that divide it (8, 4, 2 or 1), five runs
    bench/gpu.sh --gpus 1 --bytes 4e9 --runs 3    # one GPU, smaller and sooner

Builds the binaries, makes a checkpoint in --dir unless it is there already, then runs all in turn. README.md beside this file
says what is compared with what. Standard library only; Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import harness
from harness import ROOT, Programs, fail, note, weight_files

SIZES = (8, 4, 2, 1)
PINNED_BYTES = 2**30
PINNED_ROUNDS = 3
READ_BYTES = 8 * 2**20
# What `tests/simcuda` calls its GPUs.
SIMULATED = "simcuda"
# NCCL and drivers that nobody else uses take seconds to start.
PATIENCE = ("--patience", "60")
COPIED = "of the pinned copy"


class Clock:
    """What is left of the time that was given: nothing here outlasts it."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            self.is_over()
        return left

    def is_over(self) -> None:
        fail(f"not done after {self.minutes:g} minutes", "give less --bytes, fewer --runs, or more --minutes")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Measured:
    """One run. `rate` is GB/s of each GPU while all copy, `seconds` the whole load with its verification."""

    rate: float
    seconds: float | None = None


@dataclass(frozen=True)
class Way:
    """A way to load, and its name in the table."""

    name: str
    args: tuple[str, ...]


WAYS = (
    Way("load, --verify off", ("--verify", "off")),
    Way("load, --verify full", ("--verify", "full")),
    Way("load --registered, --verify off", ("--registered", "--verify", "off")),
)


class Machine:
    """The binaries on this machine's GPUs."""

    def __init__(self, programs: Programs, clock: Clock) -> None:
        self.programs = programs
        self.clock = clock
        self.notes: list[str] = []
        listed = json.loads(self.run([programs.pinned_copy, "--list"]))
        self.gpus: list[dict[str, str]] = listed["gpus"]
        self.cuda = f"{listed['driver'] // 1000}.{listed['driver'] % 1000 // 10}"

    def is_simulated(self) -> bool:
        return any(SIMULATED in gpu["name"] for gpu in self.gpus)

    def start(self, command: list[str | Path], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=os.environ | (env or {}), stdout=pipe, stderr=pipe, text=True)

    def end(self, child: subprocess.Popen[str]) -> Ended:
        try:
            out, err = child.communicate(timeout=self.clock.left())
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            self.clock.is_over()
            raise
        return Ended(child.returncode, out, err)

    def run(self, command: list[str | Path]) -> str:
        """The standard output of a command, which must succeed; what it notes is kept, once."""
        ended = self.end(self.start(command))
        if ended.code != 0:
            sys.stderr.write(ended.err)
            fail(f"exit code {ended.code} from: {shlex.join(map(str, command))}", "what it said stands above")
        self.notes += [
            line for line in ended.err.splitlines() if without_numbers(line) not in map(without_numbers, self.notes)
        ]
        return ended.out

    def plan(self, model: Path, tp: int, file: Path) -> Path:
        self.run([self.programs.shardwright, "plan", model, "--topology", "host", "--tp", str(tp), "-o", file])
        return file

    def load_command(self, plan: Path, args: tuple[str, ...]) -> list[str | Path]:
        return [self.programs.shardwright, "load", plan, "--device", "cuda", "--json", *PATIENCE, *args]

    def load(self, plan: Path, way: Way) -> Measured:
        return measured(json.loads(self.run(self.load_command(plan, way.args))))

    def pinned(self, gpus: int, size: int) -> Measured:
        command = [self.programs.pinned_copy, "--gpus", str(gpus), "--bytes", str(size), "--rounds", str(PINNED_ROUNDS)]
        return Measured(json.loads(self.run(command))["median_gb_per_second"] / gpus)

    def hardware(self, gpus: int) -> list[str]:
        """What the GPUs are, one line a kind. Ask just after they were busy: idle links are slow to save power."""
        used = self.gpus[:gpus]
        lines = nvidia_smi([gpu["uuid"] for gpu in used]) or [
            f"{gpu['name']}, {sysfs_link(gpu['pci'])}" for gpu in used
        ]
        return [f"{lines.count(line)} x {line}, CUDA {self.cuda}" for line in dict.fromkeys(lines)]


def without_numbers(line: str) -> str:
    return re.sub(r"\d+", "", line)


def measured(loaded: dict[str, Any]) -> Measured:
    """Of what `load --json` printed: the slowest rank's time is the load's."""
    ranks = loaded["ranks"]
    seconds = max(rank["load_seconds"] for rank in ranks)
    return Measured(sum(rank["bytes"] for rank in ranks) / seconds / len(ranks) / 1e9, loaded["seconds"])


def nvidia_smi(uuids: list[str]) -> list[str]:
    """A line for each GPU, or none where the tool does not run or knows them by other names."""
    fields = "name,driver_version,pcie.link.gen.current,pcie.link.width.current,pcie.link.gen.max,pcie.link.width.max"
    command = ["nvidia-smi", f"--id={','.join(uuids)}", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    if done.returncode != 0 or not all(len(row) == 6 for row in rows):
        return []
    return [
        f"{name}, driver {driver}, PCIe gen {gen} x{width} (at most gen {most} x{wide})"
        for name, driver, gen, width, most, wide in rows
    ]


def sysfs_link(pci: str) -> str:
    def value(name: str) -> str:
        try:
            return (Path("/sys/bus/pci/devices") / pci / name).read_text().strip()
        except OSError:
            return "?"

    link = f"{value('current_link_speed')} x{value('current_link_width')}"
    return (
        "PCIe link unknown" if "?" in link else f"{link} (at most {value('max_link_speed')} x{value('max_link_width')})"
    )


def commit() -> str:
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], check=False, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        ", with changes" if git("status", "--porcelain") else ""
    )


def warm(files: list[Path]) -> None:
    """Brings the files into the page cache."""
    buffer = bytearray(READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def two_ranks_on_one_gpu(machine: Machine, plan: Path) -> str:
    """What comes of a plan for two ranks when both have the first GPU only, each in a process of its own."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", machine.gpus[0]["uuid"]).split(",")[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(*args: str) -> list[Ended]:
        meet = ("--world-size", "2", "--rendezvous", f"127.0.0.1:{port}", *args)
        ranks = ("0", "1")
        children = [
            machine.start(machine.load_command(plan, ("--rank", rank, *meet)), {"CUDA_VISIBLE_DEVICES": visible})
            for rank in ranks
        ]
        try:
            return [machine.end(child) for child in children]
        finally:
            for child in children:
                child.kill()

    def said(ended: list[Ended]) -> str:
        loaded = [json.loads(end.out) for end in ended]
        # Each process tells of its own rank, and both ranks share the link.
        rate = sum(measured(of_rank).rate for of_rank in loaded)
        return f"{rate:.2f} GB/s together, {max(of_rank['seconds'] for of_rank in loaded):.2f} s"

    verified, plain = run("--verify", "full"), run("--verify", "off")
    if all(end.code == 0 for end in verified):
        answer = f"NCCL takes them; verified, {said(verified)}"
    else:
        refused = next(end for end in verified if end.code != 0)
        lines = refused.err.splitlines()
        reason = next((line for line in lines if "last message" in line), lines[0] if lines else "no reason")
        kind = "which is allowed" if "uplicate GPU" in reason else "exit code " + str(refused.code)
        answer = f"refused, {kind}: {reason.strip()}"
    if all(end.code == 0 for end in plain):
        return f"{answer}\n             not verified, {said(plain)}"
    return f"{answer}\n             not verified: {next(end.err for end in plain if end.code != 0).strip()}"


def print_table(pinned: list[Measured], loads: dict[str, list[Measured]]) -> None:
    rates = [run.rate for run in pinned]
    rows = [("measured", "seconds", "GB/s a GPU", "best", COPIED)]
    rows.append(("pinned copy", "", f"{statistics.median(rates):.2f}", f"{max(rates):.2f}", "1.00"))
    for name, runs in loads.items():
        rows.append(
            (
                name,
                f"{statistics.median(run.seconds or 0 for run in runs):.2f}",
                f"{statistics.median(run.rate for run in runs):.2f}",
                f"{max(run.rate for run in runs):.2f}",
                f"{statistics.median(run.rate / limit for run, limit in zip(runs, rates, strict=True)):.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def overhead(loads: dict[str, list[Measured]]) -> float:
    """How much longer a verified load takes than one that is not, in percent: the median of the rounds."""
    plain, verified = (loads[way.name] for way in WAYS[:2])
    seconds = [(before.seconds or 0, after.seconds or 0) for before, after in zip(plain, verified, strict=True)]
    return 100 * statistics.median(after / before - 1 for before, after in seconds)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gpus", type=int, choices=SIZES, help="how many (default: as many as there are of 8, 4, 2 and 1)"
    )
    parser.add_argument(
        "--bytes", type=lambda text: int(float(text)), default=8 * 2**30, help="size of the checkpoint (default: 8 GiB)"
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds of everything (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="after which it gives up (default: %(default)s)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "shardwright-bench",
        help="where the checkpoint is kept for the next time (default: %(default)s)",
    )
    arguments = parser.parse_args(words)
    if arguments.runs < 1:
        parser.error("--runs is at least 1")
    return arguments


def main() -> None:
    arguments = arguments_of()
    programs = harness.build()
    clock = Clock(arguments.minutes)
    machine = Machine(programs, clock)
    gpus = arguments.gpus or next((size for size in SIZES if size <= len(machine.gpus)), 1)
    if gpus > len(machine.gpus):
        fail(f"--gpus {gpus}: this process sees {len(machine.gpus)}", "give fewer, or look at CUDA_VISIBLE_DEVICES")
    needs = arguments.bytes + gpus * PINNED_BYTES + harness.SPARE_BYTES
    if harness.meminfo("MemAvailable") < needs:
        fail(
            f"the checkpoint in the page cache and pinned memory need {needs / 1e9:.1f} GB, and"
            f" {harness.meminfo('MemAvailable') / 1e9:.1f} GB are available",
            "give less --bytes: what does not fit would measure the disk",
        )

    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = harness.checkpoint(folder, arguments.bytes)
    files = weight_files(model)
    size = sum(file.stat().st_size for file in files)
    # Not more than the GPU has to have room for anyway.
    pinned_bytes = min(PINNED_BYTES, size // gpus)
    with tempfile.TemporaryDirectory(prefix="shardwright-plans.") as scratch:
        plan = machine.plan(model, gpus, Path(scratch) / "plan.yaml")
        note("bringing the checkpoint into the page cache")
        warm(files)
        # Once unmeasured: the driver compiles the kernel for the GPU and keeps it.
        machine.load(plan, WAYS[1])
        in_turn: dict[str, Callable[[], Measured]] = {way.name: lambda way=way: machine.load(plan, way) for way in WAYS}
        pinned: list[Measured] = []
        loads: dict[str, list[Measured]] = {name: [] for name in in_turn}
        for number in range(1, arguments.runs + 1):
            note(f"round {number} of {arguments.runs}")
            pinned.append(machine.pinned(gpus, pinned_bytes))
            for name, load in in_turn.items():
                loads[name].append(load())
        machine.pinned(gpus, pinned_bytes)
        hardware = machine.hardware(gpus)
        note("two ranks on one GPU")
        two = two_ranks_on_one_gpu(machine, machine.plan(model, 2, Path(scratch) / "two.yaml"))

    if machine.is_simulated():
        print("SIMULATED DRIVER: the figures mean nothing\n")
    print(f"date:        {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC")
    print(f"commit:      {commit()}")
    print(f"machine:     {harness.machine()}")
    print("GPUs:        " + "\n             ".join(hardware))
    print(f"command:     bench/gpu.sh --gpus {gpus} --bytes {arguments.bytes} --runs {arguments.runs}")
    print(f"checkpoint:  {size / 1e9:.2f} GB in the page cache, tp {gpus}; medians of {arguments.runs} rounds")
    print(f"pinned copy: {pinned_bytes / 2**30:.2f} GiB a GPU in pieces of 8 MiB, all GPUs at the same time\n")
    print_table(pinned, loads)
    for line in machine.notes:
        print(line)
    print(f"\ntwo ranks on one GPU: {two}")
    copied = statistics.median(run.rate / limit.rate for run, limit in zip(loads[WAYS[0].name], pinned, strict=True))
    print(f"\na load copies at {copied:.2f} {COPIED}; verifying makes it {overhead(loads):.0f} % longer")


if __name__ == "__main__":
    main()
