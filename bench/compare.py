"""Measures shardwright against its bars and against the physical limit, and prints one table.

    python3 bench/compare.py                          # a checkpoint of 4 GB, five runs
    python3 bench/compare.py --bytes 2e9 --runs 3     # smaller and sooner

Builds the binaries, makes a 70B skeleton and a checkpoint in --dir unless they are there already, then runs ours and the
limit in turn. README.md beside this file says what is compared with what. Standard library only; Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

PLANNED_MODEL = "llama-3.1-70b"
PLAN_SECONDS_BAR = 0.100
PLAN_BYTES_BAR = 100e6

TP_SIZES = (1, 2, 4, 8)
# The one that has a bar, the others show how it scales.
TP_OF_BAR = 4
LOAD_RATIO_BAR = 0.5

# What the machine needs beside the checkpoint in the page cache and its copy.
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is against / ours: above 1 ours is the better one; `bar` is the least it may be.

    `best` is the same ratio between the fastest run of each, for machines on which something else costs time now and then.
    """

    measured: str
    ours: str
    against: str
    ratio: float
    bar: float | None = None
    best: float | None = None

    @property
    def met(self) -> bool:
        return self.bar is None or self.ratio >= self.bar


@dataclass(frozen=True)
class Programs:
    """The built binaries."""

    shardwright: Path
    pread_limit: Path
    pinned_copy: Path


def fail(message: str, help: str) -> None:
    sys.exit(f"error: {message}\nhelp: {help}")


def run(command: list[str | Path]) -> str:
    """The standard output of a command, which must succeed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail(f"exit code {done.returncode} from: {shlex.join(map(str, command))}", "what it said stands above")
    return done.stdout


def note(text: str) -> None:
    """Says what is going on, on stderr: the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def build() -> Programs:
    note("building")
    command = ["cargo", "build", "--release", "--locked", "--package", "shardwright", "--package", "shardwright-bench"]
    # The messages tell where the binaries are, whatever the target folder is called.
    messages = map(json.loads, run([*command, "--message-format", "json-render-diagnostics"]).splitlines())
    built = {message["target"]["name"]: Path(message["executable"]) for message in messages if message.get("executable")}
    return Programs(built["shardwright"], built["pread_limit"], built["pinned_copy"])


def make_once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """`folder` as `make` fills it, or as an earlier run left it. It is made aside and renamed, so it is never half there."""
    if not folder.is_dir():
        note(f"making {folder}")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as aside:
            make(Path(aside) / folder.name)
            (Path(aside) / folder.name).rename(folder)
        # Writing it back to disk would disturb what is measured.
        os.sync()
    return folder


def skeleton(folder: Path) -> Path:
    script = ROOT / "bench" / "skeleton.py"
    return make_once(folder / PLANNED_MODEL, lambda to: run([sys.executable, "-B", script, PLANNED_MODEL, to]))


def checkpoint(folder: Path, wanted_bytes: int) -> Path:
    script = ROOT / "bench" / "checkpoint.py"
    folder = folder / f"checkpoint-{wanted_bytes}"
    if not folder.is_dir() and shutil.disk_usage(folder.parent).free < wanted_bytes + SPARE_BYTES:
        fail(f"{folder.parent} has no room for a checkpoint of {wanted_bytes / 1e9:.1f} GB", "give --dir or less --bytes")
    return make_once(folder, lambda to: run([sys.executable, "-B", script, to, "--bytes", str(wanted_bytes)]))


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def meminfo(key: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def timed(command: list[str | Path]) -> tuple[float, int]:
    """Seconds and peak bytes of memory of a whole process, from its start to its end."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        fail(f"exit code {child.returncode} from: {shlex.join(map(str, command))}", "what it said stands above")
    return seconds, usage.ru_maxrss * 1024


def planning(programs: Programs, model: Path, scratch: Path, runs: int) -> list[Row]:
    command = [programs.shardwright, "plan", model, "--topology", "dgx-h100", "--tp", "8", "-o", scratch / "70b.yaml"]
    timed(command)
    note(f"planning {PLANNED_MODEL}, {runs} times")
    measured = [timed(command) for _ in range(runs)]
    seconds = statistics.median(seconds for seconds, _ in measured)
    peak = statistics.median(peak for _, peak in measured)
    return [
        Row(
            f"plan {PLANNED_MODEL}, wall",
            f"{seconds * 1e3:.0f} ms",
            f"{PLAN_SECONDS_BAR * 1e3:.0f} ms",
            PLAN_SECONDS_BAR / seconds,
            bar=1.0,
        ),
        Row(
            f"plan {PLANNED_MODEL}, peak memory",
            f"{peak / 1e6:.0f} MB",
            f"{PLAN_BYTES_BAR / 1e6:.0f} MB",
            PLAN_BYTES_BAR / peak,
            bar=1.0,
        ),
    ]


def loading(programs: Programs, model: Path, scratch: Path, runs: int) -> list[Row]:
    def limit() -> float:
        return json.loads(run([programs.pread_limit, *weight_files(model)]))["seconds"]

    def load(plan: Path, verify: str) -> float:
        command = [programs.shardwright, "load", plan, "--device", "host", "--verify", verify, "--json"]
        return json.loads(run(command))["seconds"]

    def warm(measure: Callable[[], float]) -> float:
        """Measures with the files in the page cache, and memory to fill that was in use until just now."""
        # Kernels that hand free memory back to a host do it every two seconds. Falling into step with that would slow
        # down always the same one of the three.
        time.sleep(random.uniform(0, 2))
        limit()
        return measure()

    note("bringing the checkpoint into the page cache")
    limit()
    rows = []
    for tp in TP_SIZES:
        plan = scratch / f"tp{tp}.yaml"
        run([programs.shardwright, "plan", model, "--topology", "host", "--tp", str(tp), "-o", plan])
        note(f"loading at tp {tp}, {runs} times in turn with the limit")
        load(plan, "full")
        # One after the other, so that whatever slows the machine down for a while slows all three down.
        in_turn: tuple[Callable[[], float], ...] = (limit, lambda: load(plan, "off"), lambda: load(plan, "full"))
        rounds = [[warm(measure) for measure in in_turn] for _ in range(runs)]
        limits, plain, verified = zip(*rounds, strict=True)
        for what, ours in (("", plain), (", verified", verified)):
            rows.append(
                Row(
                    f"load tp {tp}{what}",
                    f"{statistics.median(ours):.2f} s",
                    f"{statistics.median(limits):.2f} s",
                    statistics.median(limit / our for limit, our in zip(limits, ours, strict=True)),
                    bar=LOAD_RATIO_BAR if tp == TP_OF_BAR and not what else None,
                    best=min(limits) / min(ours),
                )
            )
    return rows


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {meminfo('MemTotal') / 2**30:.1f} GiB of memory, Linux {platform.release()}"


def print_table(rows: list[Row]) -> None:
    head = ("measured", "ours", "against", "ratio", "bar", "met", "best ratio")
    cells = [
        (
            row.measured,
            row.ours,
            row.against,
            f"{row.ratio:.2f}",
            "" if row.bar is None else f"{row.bar:.2f}",
            "" if row.bar is None else "yes" if row.met else "NO",
            "" if row.best is None else f"{row.best:.2f}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for line in (head, *cells):
        aligned = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(aligned).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="measurements of each kind (default: %(default)s)")
    parser.add_argument(
        "--bytes", type=lambda text: int(float(text)), default=4 * 10**9, help="size of the checkpoint (default: 4e9)"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "shardwright-bench",
        help="where the checkpoints are kept for the next time (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs is at least 1")
    needs = 2 * arguments.bytes + SPARE_BYTES
    if meminfo("MemAvailable") < needs:
        fail(
            f"the checkpoint in the page cache and its copy need {needs / 1e9:.1f} GB of memory,"
            f" and {meminfo('MemAvailable') / 1e9:.1f} GB are available",
            "give less --bytes: what does not fit would measure the disk",
        )

    programs = build()
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    planned = skeleton(folder)
    loaded = checkpoint(folder, arguments.bytes)
    with tempfile.TemporaryDirectory(prefix="shardwright-plans.") as scratch:
        rows = planning(programs, planned, Path(scratch), arguments.runs)
        rows += loading(programs, loaded, Path(scratch), arguments.runs)

    size = sum(file.stat().st_size for file in weight_files(loaded))
    print(f"machine:    {machine()}")
    print(f"command:    python3 bench/compare.py --runs {arguments.runs} --bytes {arguments.bytes:.3g}")
    print(f"checkpoint: {size / 1e9:.2f} GB in the page cache; medians of {arguments.runs} runs, ratio = against / ours\n")
    print_table(rows)
    missed = [row.measured for row in rows if not row.met]
    print(f"\n{'missed: ' + ', '.join(missed) if missed else 'every bar is met'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
