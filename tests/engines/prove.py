"""Runs vLLM with plain checkpoints, with exported files and with the loader, and compares.

    python3 tests/engines/prove.py [--dir DIR] [--families NAME,…] [--tp 1,2] [--pp 1,2] [--only parameters|tokens|faults|bytes|speed|export] [--formats files,loader]

One table for each question: are all parameters the same, bit by bit; are the greedy tokens; does what goes wrong say so; how many bytes
does each rank read; how long does loading take; how long does exporting take against `cp`. The exit code is 1 where an answer is no.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARDWRIGHT = ROOT / "target/release/shardwright"
PREAD_LIMIT = ROOT / "target/release/pread_limit"
PATIENCE = 900

sys.path[:0] = [str(HERE), str(ROOT / "bench")]
import checkpoints  # noqa: E402


@dataclass
class Run:
    """One run of the engine."""

    tokens: list | None
    log: str

    def digests(self) -> dict[str, str]:
        """Of all parameters, by the rank."""
        return dict(re.findall(r"compare: rank (\d+) has (\d+ tensors, [0-9a-f]+)", self.log))

    def problem(self) -> str:
        lines = [line for line in self.log.splitlines() if re.search(r"Error|Missing|shardwright", line)]
        return lines[-1][-160:] if lines else self.log[-160:]

    def seconds(self) -> float | None:
        """What the slowest worker took. Not by the engine's "Loading weights took", which some loaders do not print."""
        return max(map(float, re.findall(r"compare: load_weights took ([0-9.]+) s", self.log)), default=None)


class Ballast:
    """Memory that is given back when the engine begins to load.

    Hypervisors take back what their guests leave free, and give it again page by page: on such a machine the first touch of fresh memory
    takes ten times what clearing it does, and hides all that loaders do. What was touched a moment ago is still there.
    """

    def __init__(self, size: int) -> None:
        self.held = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.held.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, 4096):
            self.held[at] = 1

    def drop(self) -> None:
        self.held.close()


def engine(
    model: Path,
    load_format: str,
    tp: int,
    files: Path | None = None,
    *,
    digest: bool = False,
    steady: bool = False,
    ballast: int = 0,
    ready: Callable[[], object] | None = None,
    loading: Callable[[int], object] | None = None,
    **more: object,
) -> Run:
    """Runs the engine with `more` arguments. `steady` has it add up in one order, so that runs of it agree. `ready` is called before it
    starts, when `ballast` bytes are held for it, and `loading` with its process when it begins to load."""

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tokens.json"
        command = [sys.executable, HERE / "tokens.py", out, model, load_format, str(tp), json.dumps(more)]
        paths = os.pathsep.join(filter(None, [str(HERE / "compare"), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "VLLM_COMPARE_WITH": str(files)}
        if steady:
            environment["OMP_NUM_THREADS"] = "1"
        if digest:
            environment["VLLM_COMPARE_DIGEST"] = "1"
        held = Ballast(ballast)
        if ready is not None:
            ready()
        # Not from the repository: `python/` there has no extension module.
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        late = threading.Timer(PATIENCE, os.killpg, (child.pid, signal.SIGKILL))
        late.start()
        lines = []
        for line in child.stdout:
            lines.append(line)
            if "Starting to load model" in line:
                held.drop()
                if loading is not None:
                    loading(child.pid)
                    # Every worker says so.
                    loading = None
        child.wait()
        late.cancel()
        tokens = json.loads(out.read_text()) if out.exists() else None
        return Run(tokens, "".join(lines))


def shardwright(*arguments: object) -> str:
    done = subprocess.run([SHARDWRIGHT, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def compared(plain: Run, again: Run, other: Run) -> str:
    if plain.tokens is None:
        return "the engine itself cannot run it"
    if other.tokens is None:
        return f"FAILS: {other.problem()}"
    if plain.tokens == other.tokens:
        return "same"
    return "DIFFERENT" if again.tokens == plain.tokens else "plain loads differ among themselves"


def parameters(run: Run, world: int) -> str:
    """Whether every parameter of every rank is the same, bit by bit, before the engine changes their layout."""
    found = re.findall(r"compare: rank \d+: (\d+) of (\d+) parameters differ (.*)", run.log)
    if len(found) != world:
        return f"FAILS: {run.problem()}"
    wrong = [line for line in found if line[0] != "0"]
    return f"{wrong[0][0]} DIFFER: {wrong[0][2]}" if wrong else "same"


@dataclass
class Case:
    """A family, and how many ranks hold it in which way."""

    family: str
    tp: int
    pp: int = 1
    experts: bool = False

    def label(self) -> str:
        stages = f", {self.pp} pipeline stages" if self.pp > 1 else ""
        return self.family + stages + (", expert parallel" if self.experts else "")

    def world(self) -> int:
        return self.tp * self.pp

    def exported(self, folder: Path, model: Path, engine: str = "vllm") -> Path:
        into = folder / f"{self.family}-{self.tp}-{self.pp}{'-experts' if self.experts else ''}"
        shutil.rmtree(into, ignore_errors=True)
        plan = into.with_suffix(".yaml")
        options = ["--expert-parallel"] if self.experts else []
        shardwright("plan", model, "--tp", self.tp, "--pp", self.pp, "--topology", "host", "-o", plan, *options)
        shardwright("export", plan, "-o", into, "--format", "sharded-state", "--engine", engine)
        return into

    def engine(self, model: Path, load_format: str, files: Path | None = None, **more: object) -> Run:
        if self.pp > 1:
            more["pipeline_parallel_size"] = self.pp
        if self.experts:
            more["enable_expert_parallel"] = True
        return engine(model, load_format, self.tp, files, steady=True, **more)


# Of each kind of what stages hold of embedding and head: the first and the last, one both, every one.
IN_STAGES = ("llama", "llama-tied", "gemma3", "mixtral")


def cases(families: list[str], sizes: list[int], stages: list[int]) -> Iterator[Case]:
    for family in families:
        for tp in sizes:
            for pp in stages:
                if pp == 1 or family in IN_STAGES:
                    yield Case(family, tp, pp)
        if family == "qwen3_moe" and 2 in sizes and 1 in stages:
            yield Case(family, 2, experts=True)


def prove_parameters(folder: Path, all_cases: list[Case]) -> bool:
    rows = []
    for case in all_cases:
        model = checkpoints.write(folder, case.family)
        plain = case.engine(model, "compare", case.exported(folder, model), digest=True, max_tokens=1)
        ours = case.engine(model, "shardwright", digest=True, max_tokens=1)
        if len(ours.digests()) != case.world():
            loader = f"FAILS: {ours.problem()}"
        elif "loading whole tensors" in ours.log:
            loader = "WHOLE TENSORS"
        else:
            loader = "same" if plain.digests() == ours.digests() else "DIFFERENT"
        rows.append([case.label(), str(case.tp), parameters(plain, case.world()), loader])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    head = ["family", "tp", "sharded_state files", "--load-format shardwright"]
    table("All parameters of all ranks against those of a plain load, bit by bit", head, rows)
    return all(row[2:] == ["same", "same"] for row in rows)


def prove_tokens(folder: Path, all_cases: list[Case], formats: list[str]) -> bool:
    rows = []
    for case in all_cases:
        model = checkpoints.write(folder, case.family)
        plain = case.engine(model, "auto")
        found = {}
        if "files" in formats:
            try:
                found["files"] = case.engine(case.exported(folder, model), "sharded_state")
            except RuntimeError as refused:
                found["files"] = Run(None, str(refused))
        if "loader" in formats:
            found["loader"] = case.engine(model, "shardwright")
        differ = plain.tokens is not None and any(run.tokens != plain.tokens for run in found.values())
        again = case.engine(model, "auto") if differ else plain
        reads = "-"
        if (ours := found.get("loader")) is not None:
            whole = "loading whole tensors" in ours.log
            by_us = len(re.findall(r"shardwright: rank \d+ read", ours.log)) == case.world() and not whole
            reads = "each rank's slices" if by_us else "WHOLE TENSORS"
        answers = [compared(plain, again, found[it]) if it in found else "-" for it in ("files", "loader")]
        row = [case.label(), str(case.tp), *answers, reads]
        rows.append(row)
        print(*row, sep="  ", file=sys.stderr, flush=True)
    head = ["family", "tp", "sharded_state files", "--load-format shardwright", "which reads"]
    table("Greedy tokens against a plain load", head, rows)
    fine = ("-", "same", "the engine itself cannot run it", "plain loads differ among themselves")
    return all(row[2] in fine and row[3] in fine and row[4] != "WHOLE TENSORS" for row in rows)


def prove_faults(folder: Path, size: int) -> bool:
    """What goes wrong ends the engine with words that say what, and in time."""
    model = checkpoints.write(folder, "llama")
    plans = {tp: folder / f"fault-{tp}.yaml" for tp in (2, 4)}
    for tp, plan in plans.items():
        shardwright("plan", model, "--tp", tp, "--topology", "host", "-o", plan)
    changed = folder / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(model, changed)
    shardwright("plan", changed, "--tp", 2, "--topology", "host", "-o", folder / "changed.yaml")
    file = sorted(changed.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes().replace(b'"format":"pt"', b'"format":"np"'))
    killed: list[float] = []

    def kill_a_worker(process: int) -> None:
        def kill() -> None:
            listed = subprocess.run(["pgrep", "-s", str(process), "-f", "Worker_TP1"], capture_output=True, text=True)
            for worker in listed.stdout.split():
                os.kill(int(worker), signal.SIGKILL)
                killed.append(time.monotonic())

        threading.Timer(1.5, kill).start()

    def given(plan: Path, **more: object) -> dict:
        return {"max_tokens": 1, "model_loader_extra_config": {"plan": str(plan), **more}}

    big = large(folder, size)
    cases: dict[str, tuple[str, Callable[[], Run]]] = {
        "a plan for four ranks": (
            "is for 4 ranks, and the engine has 2",
            lambda: engine(model, "shardwright", 2, **given(plans[4])),
        ),
        "a checkpoint that has changed": (
            "is not the file that was planned|has changed",
            lambda: engine(changed, "shardwright", 2, **given(folder / "changed.yaml")),
        ),
        "an option that does not exist": (
            "unknown options",
            lambda: engine(model, "shardwright", 2, **given(plans[2], speed="high")),
        ),
        "a worker killed while it loads": (
            "rank 1 (ended before the others|failed|has made no progress)",
            lambda: engine(
                big, "shardwright", 2, ready=partial(drop, big), loading=kill_a_worker, max_tokens=1
            ),
        ),
    }
    rows = []
    for name, (words, run) in cases.items():
        ended = run()
        said = re.search(words, ended.log)
        fine = ended.tokens is None and said is not None
        after = f"{time.monotonic() - killed[-1]:.0f} s after" if killed else "-"
        rows.append([name, said.group(0) if said else ended.problem(), after, "ends" if fine else "WRONG"])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    table("What goes wrong, tp 2", ["", "the log says", "the engine ended", ""], rows)
    return all(row[-1] == "ends" for row in rows)


def large(folder: Path, size: int) -> Path:
    model = folder / f"checkpoint-{size}"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, ROOT / "bench/checkpoint.py", model, "--bytes", str(size)], check=True)
    return model


def drop(folder: Path) -> None:
    """Has the page cache forget the weights of `folder`."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(16 << 20):
                pass


def prove_bytes(folder: Path, size: int) -> bool:
    model = large(folder, size)
    whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    rows, fine = [], True
    for tp in (1, 2, 4):
        drop(model)
        ours = engine(model, "shardwright", tp, max_tokens=1)
        found = re.findall(r"shardwright: rank (\d+) read ([0-9.]+) GB for ([0-9.]+) GB", ours.log)
        for rank, read, held in sorted(found):
            ratio = float(read) / float(held)
            fine &= ratio <= 1.05
            rows.append([str(tp), rank, held, read, f"{ratio:.2f}", f"{whole / 1e9 / float(held):.2f}"])
        if len(found) != tp:
            fine = False
            rows.append([str(tp), "-", "-", ours.problem(), "FAILS", "-"])
    head = ["tp", "rank", "GB of slices", "GB read", "ratio", "reading all would be"]
    table("Bytes that each rank had read from storage, by the kernel's count, cold", head, rows)
    return fine


def read_directly(folder: Path) -> float:
    """Seconds that reading the weights of `folder` past the page cache takes when nobody wants them: the limit of cold loads."""
    command = [PREAD_LIMIT, "--direct", "--threads", "16", *folder.glob("*.safetensors")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(said)["seconds"])


def prove_speed(folder: Path, size: int, rounds: int, states: list[str]) -> bool:
    model = large(folder, size)
    formats = ["auto", "runai_streamer", "fastsafetensors", "shardwright"]
    rows, fine = [], True
    for state in states:
        took: dict[str, list[float]] = {name: [] for name in formats}
        storage: list[float] = []
        why: dict[str, str] = {}
        for _ in range(rounds):
            if state == "cold":
                drop(model)
                storage.append(read_directly(model))
            for name in formats:
                if name in why:
                    continue
                ready = partial(warm if state == "warm" else drop, model)
                # Parameters, and the page cache where that is empty; twice as much, because not all is given back at once.
                fresh = (2 if state == "warm" else 3) * size
                run = engine(model, name, 2, ready=ready, ballast=fresh, max_tokens=1)
                seconds = run.seconds()
                if seconds is None or run.tokens is None:
                    why[name] = run.problem()
                else:
                    took[name].append(seconds)
        others = [statistics.median(it) for name, it in took.items() if it and name != "shardwright"]
        ours = statistics.median(took["shardwright"]) if took["shardwright"] else float("inf")
        for name in formats:
            if took[name]:
                middle, each = statistics.median(took[name]), ", ".join(f"{it:.2f}" for it in took[name])
                rows.append([state, name, f"{middle:.2f}", each, f"{middle / ours:.2f}"])
            else:
                rows.append([state, name, "-", "-", f"does not run: {why.get(name, '')[-80:]}"])
        if storage:
            middle, each = statistics.median(storage), ", ".join(f"{it:.2f}" for it in storage)
            rows.append([state, "(the files read directly)", f"{middle:.2f}", each, f"{middle / ours:.2f}"])
        fine &= bool(others) and ours <= min(others) / 2
    head = ["page cache", "load format", "load_weights took, s", "each", "of ours"]
    table(f"{size / 1e9:.0f} GB, tp 2, medians of {rounds}", head, rows)
    return fine


def prove_export(folder: Path, size: int, rounds: int) -> bool:
    model = large(folder, size)
    plan, into, copy = folder / "export.yaml", folder / "exported", folder / "copied"
    shardwright("plan", model, "--tp", 4, "--topology", "host", "-o", plan)
    times: dict[str, list[float]] = {"cp": [], "export": [], "export and read back": []}
    peak, read = 0.0, 0.0
    for _ in range(rounds):
        for name in times:
            for path in (into, copy):
                shutil.rmtree(path, ignore_errors=True)
            os.sync()
            drop(model)
            verify = [] if name != "export" else ["--verify", "off"]
            command = (
                ["cp", "-r", model, copy] if name == "cp" else [SHARDWRIGHT, "export", plan, "-o", into, *verify]
            )
            begin = time.monotonic()
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            times[name].append(time.monotonic() - begin)
            if status != 0:
                raise RuntimeError(f"{name} ends with {status}")
            if name != "cp":
                peak = max(peak, usage.ru_maxrss / 1024)
                read = max(read, usage.ru_inblock * 512 / 1e9)
    base = statistics.median(times["cp"])
    rows = [
        [name, f"{statistics.median(it):.2f}", f"{statistics.median(it) / base:.2f}"] for name, it in times.items()
    ]
    table(f"Exporting {size / 1e9:.0f} GB to tp 4, cold, medians of {rounds}", ["", "s", "of cp"], rows)
    print(f"\nAt most {peak:.0f} MiB resident, {read:.2f} GB read.")
    for path in (into, copy):
        shutil.rmtree(path, ignore_errors=True)
    return statistics.median(times["export and read back"]) <= 1.25 * base and peak < 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()) / "shardwright-engines")
    parser.add_argument("--families", default=",".join(checkpoints.FAMILIES))
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--pp", default="1,2")
    parser.add_argument("--formats", default="files,loader")
    parser.add_argument("--bytes", type=float, default=4e9)
    parser.add_argument("--page-cache", default="warm,cold")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["parameters", "tokens", "faults", "bytes", "speed", "export"])
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    size, rounds = int(arguments.bytes), arguments.rounds
    sizes, stages = ([int(size) for size in text.split(",")] for text in (arguments.tp, arguments.pp))
    all_cases = list(cases(arguments.families.split(","), sizes, stages))
    questions = {
        "parameters": lambda: prove_parameters(arguments.dir, all_cases),
        "tokens": lambda: prove_tokens(arguments.dir, all_cases, arguments.formats.split(",")),
        "faults": lambda: prove_faults(arguments.dir, size),
        "bytes": lambda: prove_bytes(arguments.dir, size),
        "speed": lambda: prove_speed(arguments.dir, size, rounds, arguments.page_cache.split(",")),
        "export": lambda: prove_export(arguments.dir, size, rounds),
    }
    chosen = [arguments.only] if arguments.only else list(questions)
    answers = {name: questions[name]() for name in chosen}
    print("\n" + "  ".join(f"{name}: {'holds' if fine else 'DOES NOT HOLD'}" for name, fine in answers.items()))
    sys.exit(0 if all(answers.values()) else 1)


if __name__ == "__main__":
    main()
