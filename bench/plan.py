"""Measures planning against its bars, and prints one table.

    python3 bench/plan.py               # five runs
    python3 bench/plan.py --runs 20

Builds the binary and makes a 70B skeleton in --dir unless it is there already. README.md beside this file says what is
measured. Standard library only; Linux.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import ROOT, fail, note, run

PLANNED_MODEL = "llama-3.1-70b"
SECONDS_BAR = 0.100
BYTES_BAR = 100e6


def skeleton(folder: Path) -> Path:
    script = ROOT / "bench" / "skeleton.py"
    return harness.make_once(folder / PLANNED_MODEL, lambda to: run([sys.executable, "-B", script, PLANNED_MODEL, to]))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="measurements (default: %(default)s)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=harness.DEFAULT_DIR,
        help="where the skeleton is kept for the next time (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs is at least 1")

    programs = harness.build()
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = skeleton(folder)
    with tempfile.TemporaryDirectory(prefix="shardwright-plans.") as scratch:
        plan = Path(scratch) / "70b.yaml"
        command = [programs.shardwright, "plan", model, "--topology", "dgx-h100", "--tp", "8", "-o", plan]
        timed(command)
        note(f"planning {PLANNED_MODEL}, {arguments.runs} times")
        measured = [timed(command) for _ in range(arguments.runs)]
    seconds = statistics.median(seconds for seconds, _ in measured)
    peak = statistics.median(peak for _, peak in measured)

    rows = [
        (f"plan {PLANNED_MODEL}, wall", seconds * 1e3, SECONDS_BAR * 1e3, "ms"),
        (f"plan {PLANNED_MODEL}, peak memory", peak / 1e6, BYTES_BAR / 1e6, "MB"),
    ]
    print(f"machine: {harness.machine()}")
    print(f"command: python3 bench/plan.py --runs {arguments.runs}; medians\n")
    harness.print_table(
        ("measured", "ours", "at most", "met"),
        [(what, f"{ours:.0f} {unit}", f"{bar:.0f} {unit}", "yes" if ours <= bar else "NO") for what, ours, bar, unit in rows],
    )
    missed = [what for what, ours, bar, _ in rows if ours > bar]
    print(f"\n{'missed: ' + ', '.join(missed) if missed else 'every bar is met'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
