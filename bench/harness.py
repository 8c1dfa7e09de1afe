"""What the benchmarks share: the built binaries, checkpoints that are made once, the machine's description, tables.

Standard library only; Linux.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent

# Below the system's temporary folder unless --dir says otherwise; kept for the next time.
DEFAULT_DIR = Path(tempfile.gettempdir()) / "shardwright-bench"

# What the machine needs beside what is measured.
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Programs:
    """The built binaries."""

    shardwright: Path
    pread_limit: Path
    pinned_copy: Path


def fail(message: str, help: str) -> NoReturn:
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


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {meminfo('MemTotal') / 2**30:.1f} GiB of memory, Linux {platform.release()}"


def print_table(head: tuple[str, ...], lines: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> None:
    """Columns as wide as they need, those of `left` aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    for line in (head, *lines):
        cells = (
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
