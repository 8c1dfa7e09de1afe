"""Measures loading, warm and cold, against peers and against the machine's limits, and prints one table.

    bench/load.sh                                   # 4 GB and 12 GB, five rounds of everything: hours
    bench/load.sh --bytes 4e9 --tp 4 --runs 3       # a part of it, sooner

load.sh makes the environment that the peers live in and starts this. README.md beside it says what is compared with what.
Standard library only; Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import harness
import page_cache
from harness import fail, note, run

STATES = ("warm", "cold")
TP_SIZES = (1, 2, 4, 8)
PEERS = ("safetensors-mmap", "safetensors-pread", "fastsafetensors", "runai-streamer")
DIRECT_THREADS = (2, 4, 8, 16)

LIMIT = "limit"
OURS = "ours"
VERIFIED = "ours, verified"

# What the bars ask, and of which tp where not of all.
TP_OF_BARS = 4
WARM_OF_LIMIT = 0.85
COLD_OF_LIMIT = 0.95
TIMES_FASTEST_PEER = 3.0
VERIFIED_TIMES_PLAIN = 1.25
STORAGE_TIMES_SIZE = 1.02
SLOWEST_TP_TIMES_FASTEST = 1.10

# What runai-model-streamer may stage in, all processes together, and the least for one: the largest tensor must fit.
STREAMER_BYTES = 2 * 10**9
STREAMER_LEAST_BYTES = 5 * 10**8

# Nothing that is measured takes this long: what does hangs, and is ended.
DEADLINE_SECONDS = 300.0
# Pages are dropped file by file, and others may read meanwhile.
COLD_SHARE = 0.01
WARM_SHARE = 0.99
# Beyond the checkpoint and its copy: processes, the kernel.
SPARE_BYTES = 5 * 10**8


class Failed(Exception):
    """A run that gave no figure, with the reason that the table shows."""


@dataclass(frozen=True)
class Outcome:
    """One run, all its processes together.

    `inside` is what the programs measured themselves, `wall` lasts from the start of the first process to the end of the last.
    """

    inside: float
    wall: float | None
    read_bytes: int
    peak_beyond_bytes: int


@dataclass(frozen=True)
class Case:
    state: str
    tp: int
    processes: int

    def __str__(self) -> str:
        return f"{self.state}, tp {self.tp}, {plural(self.processes, 'process', 'es')}"


@dataclass
class Row:
    """All runs of one contender in one case. `compared` is what its ratios are made of."""

    who: str
    case: Case
    outcomes: list[Outcome] = field(default_factory=list)
    failed: str | None = None

    def compared(self) -> list[float]:
        # With a process for each rank, starting ours and letting the ranks meet is part of the load.
        whole = self.who in (OURS, VERIFIED) and self.case.processes > 1
        return [outcome.wall if whole and outcome.wall is not None else outcome.inside for outcome in self.outcomes]

    def median(self, of: Callable[[Outcome], float]) -> float:
        return statistics.median(map(of, self.outcomes))

    def seconds(self) -> float:
        return statistics.median(self.compared())

    def times_as_fast_as(self, other: Row) -> float:
        """The median over the rounds of how many of its runs fit into one of the other."""
        rounds = zip(other.compared(), self.compared(), strict=False)
        return statistics.median(theirs / own for theirs, own in rounds)


class Processes:
    """Some processes that run at the same time, ended after DEADLINE_SECONDS."""

    def __init__(self, commands: list[list[str | Path]], environment: dict[str, str] | None = None, talk: bool = False) -> None:
        self.began = time.monotonic()
        self.errors: list[IO[bytes]] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.late = False
        self.deadline = threading.Timer(DEADLINE_SECONDS, self.expire)
        self.deadline.daemon = True
        self.deadline.start()
        for command in commands:
            self.errors.append(tempfile.TemporaryFile())
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self.errors[-1],
            )
            self.children.append(child)
            # Where memory does not suffice, this goes first and nothing else does.
            with contextlib.suppress(OSError):
                Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.deadline.cancel()
        for child in self.children:
            if child.returncode is None:
                child.kill()
            child.__exit__(None, None, None)
        for errors in self.errors:
            errors.close()

    def expire(self) -> None:
        self.late = True
        self.kill()

    def kill(self) -> None:
        for child in self.children:
            if child.returncode is None:
                # Not child.kill(): that may reap the child, and what it used would be lost.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)

    def lines(self) -> list[bytes]:
        """The next line of each."""
        lines = [child.stdout.readline() for child in self.children if child.stdout]
        if not all(lines):
            self.give_up()
        return lines

    def tell(self, line: bytes) -> None:
        try:
            for child in self.children:
                if child.stdin:
                    child.stdin.write(line)
                    child.stdin.flush()
        except BrokenPipeError:
            self.give_up()

    def give_up(self) -> NoReturn:
        """One has ended too early, and those that exchange with it would wait for ever."""
        self.kill()
        self.ended()
        raise Failed("ended early, without a figure")

    def ended(self) -> tuple[float, list[Any]]:
        """Waits for all, and gives the seconds since the first began and what each used."""
        usages: dict[int, Any] = {}
        waiting = {child.pid: child for child in self.children}
        while waiting:
            pid, status, usage = os.wait4(-1, 0)
            if pid in waiting:
                waiting.pop(pid).returncode = os.waitstatus_to_exitcode(status)
                usages[pid] = usage
        wall = time.monotonic() - self.began
        # The one that was killed because another failed is not the reason.
        for child, errors in sorted(zip(self.children, self.errors, strict=True), key=lambda pair: pair[0].returncode < 0):
            if child.returncode != 0:
                errors.seek(0)
                raise Failed(self.reason(child.returncode, errors.read().decode(errors="replace")))
        return wall, [usages[child.pid] for child in self.children]

    def reason(self, code: int, said: str) -> str:
        if self.late:
            return f"not done after {DEADLINE_SECONDS:.0f} s"
        told = [line.strip() for line in said.splitlines() if line.strip()]
        last = next((line for line in told if line.startswith("error:")), told[-1] if told else "it said nothing")
        return f"{'killed by signal ' + str(-code) if code < 0 else f'exit code {code}'}: {last[:160]}"


def plural(number: int, what: str, ending: str) -> str:
    return f"{number} {what}{ending if number > 1 else ''}"


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def measured(commands: list[list[str | Path]], destination: Callable[[dict[str, Any]], int]) -> Outcome:
    """Runs programs that print `seconds` in one JSON document."""
    with Processes(commands) as processes:
        wall, usages = processes.ended()
        said = [json.loads(child.stdout.read()) for child in processes.children if child.stdout]
    return Outcome(
        inside=max(document["seconds"] for document in said),
        wall=wall,
        read_bytes=sum(usage.ru_inblock * 512 for usage in usages),
        peak_beyond_bytes=sum(usage.ru_maxrss * 1024 for usage in usages) - sum(map(destination, said)),
    )


def peer_settings(case: Case) -> dict[str, str]:
    """What the peers' documentation lets one set, where their default would do badly here."""
    settings = {
        # Unless told it stages in up to 40 GB, which is slower here, and more than there is with several processes.
        "RUNAI_STREAMER_MEMORY_LIMIT": str(max(STREAMER_BYTES // case.processes, STREAMER_LEAST_BYTES)),
        "RUNAI_STREAMER_LOG_LEVEL": "ERROR",
    }
    if case.state == "warm":
        # Direct reads would pass by the page cache that a warm load is about.
        settings["RUNAI_STREAMER_FS_STRATEGY"] = "sync_buffered"
        settings["FASTSAFETENSORS_ODIRECT"] = "0"
    return settings


class Bench:
    """One checkpoint, everything that loads it, and what there is to say about how it went."""

    def __init__(self, programs: harness.Programs, python: Path, model: Path, scratch: Path) -> None:
        self.programs = programs
        self.python = python
        self.model = model
        self.scratch = scratch
        self.files = harness.weight_files(model)
        self.size = sum(file.stat().st_size for file in self.files)
        self.remarks: list[str] = []
        self.sums: dict[int, tuple[str, list[int]]] = {}
        self.direct_threads = DIRECT_THREADS[0]
        takes_io = "--io" in run([programs.shardwright, "load", "--help"])
        self.io_flags = ["--io", "auto"] if takes_io else []

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            note(text)
            self.remarks.append(text)

    def plan(self, tp: int) -> Path:
        plan = self.scratch / f"tp{tp}.yaml"
        if not plan.exists():
            run([self.programs.shardwright, "plan", self.model, "--topology", "host", "--tp", str(tp), "-o", plan])
        return plan

    def slices(self, tp: int, rank: int) -> Path:
        path = self.scratch / f"tp{tp}-rank{rank}.json"
        if not path.exists():
            path.write_text(run([self.programs.shardwright, "slices", self.plan(tp), "--rank", str(rank)]))
        return path

    def prepare(self, case: Case, who: str) -> None:
        """Files in the page cache and memory to fill that was in use until just now, or no file in the page cache."""
        if case.state == "warm":
            # Kernels that hand free memory back to a host do it every two seconds. Falling into step with that would slow
            # down always the same one.
            time.sleep(random.uniform(0, 2))
            run([self.programs.pread_limit, *self.files])
        else:
            page_cache.drop(self.files)
        share = page_cache.cached_share(self.files)
        if case.state == "warm" and share < WARM_SHARE:
            self.remark(f"NOT WARM: the page cache held only {share:.0%} of the files before {who}, {case}")
        if case.state == "cold" and share > COLD_SHARE:
            self.remark(f"NOT COLD: the page cache still held {share:.0%} of the files before {who}, {case}")

    def choose_direct_threads(self) -> None:
        """The limit of cold loads is the fastest of some numbers of threads."""
        taken = {}
        for threads in DIRECT_THREADS:
            page_cache.drop(self.files)
            command = [self.programs.pread_limit, "--direct", "--threads", str(threads), *self.files]
            taken[threads] = json.loads(run(command))["seconds"]
        self.direct_threads = min(taken, key=taken.__getitem__)
        each = ", ".join(f"{threads}: {seconds:.2f} s" for threads, seconds in taken.items())
        self.remark(f"direct reads by threads, {each}; {LIMIT} of cold loads: {self.direct_threads}")

    def run_limit(self, case: Case) -> Outcome:
        self.prepare(case, LIMIT)
        direct = ["--direct", "--threads", str(self.direct_threads)] if case.state == "cold" else []
        return measured([[self.programs.pread_limit, *direct, *self.files]], lambda said: said["bytes"])

    def run_ours(self, case: Case, verify: str) -> Outcome:
        self.prepare(case, OURS if verify == "off" else VERIFIED)
        load: list[str | Path] = [self.programs.shardwright, "load", self.plan(case.tp), "--device", "host"]
        load += [*self.io_flags, "--verify", verify, "--json"]
        commands = [load]
        if case.processes > 1:
            place = ["--world-size", str(case.tp), "--rendezvous", free_address()]
            commands = [[*load, "--rank", str(rank), *place] for rank in range(case.tp)]
        return measured(commands, lambda said: sum(rank["memory_bytes"] for rank in said["ranks"]))

    def run_peer(self, case: Case, peer: str, check: bool) -> Outcome:
        base: list[str | Path] = [self.python, "-B", Path(__file__).with_name("peers.py"), peer, *(["--check"] if check else [])]
        every = [self.slices(case.tp, rank) for rank in range(case.tp)]
        if case.processes == 1:
            commands = [[*base, *(f"--slices={path}" for path in every), *self.files]]
        else:
            meet = free_address()
            commands = [
                [*base, f"--slices={path}", "--rank", str(rank), "--meet", meet, *self.files] for rank, path in enumerate(every)
            ]
        with Processes(commands, {**os.environ, **peer_settings(case)}, talk=True) as processes:
            processes.lines()
            self.prepare(case, peer)
            processes.tell(b"go\n")
            said = [json.loads(line) for line in processes.lines()]
            processes.ended()
        if check:
            sums = [value for document in said for value in document["sums"]]
            first, expected = self.sums.setdefault(case.tp, (peer, sums))
            if sums != expected:
                raise Failed(f"its bytes are not those of {first}")
        return Outcome(
            inside=max(document["end"] for document in said) - min(document["begin"] for document in said),
            wall=None,
            read_bytes=sum(document["read_bytes"] for document in said),
            peak_beyond_bytes=sum(document["grown_bytes"] - document["destination_bytes"] for document in said),
        )

    def rows(self, case: Case, peers: list[str], runs: int) -> list[Row]:
        # One after the other, so that whatever slows the machine down for a while slows all of them down.
        contenders: dict[str, Callable[[bool], Outcome]] = {
            LIMIT: lambda _: self.run_limit(case),
            OURS: lambda _: self.run_ours(case, "off"),
            VERIFIED: lambda _: self.run_ours(case, "full"),
        }
        for peer in peers:
            contenders[peer] = lambda first, peer=peer: self.run_peer(case, peer, check=first)
        rows = {who: Row(who, case) for who in contenders}
        for at in range(runs):
            for who, contender in contenders.items():
                row = rows[who]
                if row.failed is not None:
                    continue
                try:
                    row.outcomes.append(contender(at == 0))
                except Failed as failed:
                    row.failed = str(failed)
                    self.remark(f"{who} failed, {case}: {failed}")
                    continue
                if case.state == "warm" and page_cache.cached_share(self.files) < WARM_SHARE:
                    self.remark(
                        f"files left the page cache while {who} loaded them, {case}: memory was short, or reclaimed early"
                    )
        return list(rows.values())


HEAD = ("state", "GB", "tp", "procs", "who", "inside", "wall", "best", "of limit", "x peer", "read GB", "beyond GB")


def fastest(rows: list[Row]) -> Row | None:
    peers = [row for row in rows if row.who in PEERS and row.failed is None]
    return min(peers, key=Row.seconds, default=None)


def table_lines(rows: list[Row], size: int) -> list[tuple[str, ...]]:
    """The lines of one case."""
    limit, peer = rows[0], fastest(rows)
    lines = []
    for row in rows:
        case = row.case
        place = (case.state, f"{size / 1e9:.2f}", str(case.tp), str(case.processes), row.who)
        if row.failed is not None:
            lines.append((*place, "failed", *[""] * 6))
            continue
        wall = "" if row.outcomes[0].wall is None else f"{row.median(lambda outcome: outcome.wall or 0):.2f}"
        lines.append(
            (
                *place,
                f"{row.median(lambda outcome: outcome.inside):.2f}",
                wall,
                f"{min(row.compared()):.2f}",
                "" if limit.failed else f"{row.times_as_fast_as(limit):.2f}",
                "" if peer is None else f"{row.times_as_fast_as(peer):.2f}",
                f"{row.median(lambda outcome: outcome.read_bytes) / 1e9:.2f}",
                f"{row.median(lambda outcome: outcome.peak_beyond_bytes) / 1e9:.2f}",
            )
        )
    return lines


@dataclass(frozen=True)
class Bar:
    what: str
    value: float | None
    bar: float
    at_least: bool

    @property
    def met(self) -> bool:
        # Nothing measured is nothing met.
        return self.value is not None and (self.value >= self.bar if self.at_least else self.value <= self.bar)

    def cells(self) -> tuple[str, ...]:
        value = "failed" if self.value is None else f"{self.value:.2f}"
        return self.what, value, f"{'>=' if self.at_least else '<='} {self.bar:.2f}", "yes" if self.met else "NO"


def bars_of(cases: list[list[Row]], size: int) -> list[Bar]:
    """What is asked of one checkpoint's loads, where the cases that it asks about were measured."""
    bars = []
    gb = f"{size / 1e9:.1f} GB"
    for rows in cases:
        case = rows[0].case
        if case.tp != TP_OF_BARS:
            continue
        limit, ours, verified = rows[:3]
        peer = fastest(rows)
        what = f"{gb}, {case}"
        of_limit = None if ours.failed or limit.failed else ours.times_as_fast_as(limit)
        bars.append(Bar(f"{what}: of the limit", of_limit, WARM_OF_LIMIT if case.state == "warm" else COLD_OF_LIMIT, True))
        if case.state != "warm":
            continue
        if any(row.who in PEERS for row in rows):
            times = None if ours.failed or peer is None else ours.times_as_fast_as(peer)
            name = "" if peer is None else f", {peer.who}"
            bars.append(Bar(f"{what}: times as fast as the fastest peer{name}", times, TIMES_FASTEST_PEER, True))
        slower = None if ours.failed or verified.failed else ours.times_as_fast_as(verified)
        bars.append(Bar(f"{what}: verified takes times unverified", slower, VERIFIED_TIMES_PLAIN, False))
    own = [row for rows in cases for row in rows if row.who in (OURS, VERIFIED)]
    cold = [row for row in own if row.case.state == "cold"]
    if cold:
        read = [row.median(lambda outcome: outcome.read_bytes) / size for row in cold if row.failed is None]
        worst = max(read) if len(read) == len(cold) else None
        bars.append(Bar(f"cold, {gb}: read from storage, times the size, at most", worst, STORAGE_TIMES_SIZE, False))
    for state in STATES:
        plain = [row for row in own if row.who == OURS and row.case.state == state and row.case.processes == 1]
        if len(plain) < 2:
            continue
        seconds = [row.seconds() for row in plain if row.failed is None]
        spread = max(seconds) / min(seconds) if len(seconds) == len(plain) else None
        sizes = ", ".join(str(row.case.tp) for row in plain)
        bars.append(Bar(f"{state}, {gb}: slowest of tp {sizes}, times the fastest", spread, SLOWEST_TP_TIMES_FASTEST, False))
    return bars


def parse() -> argparse.Namespace:
    def several(convert: Callable[[str], Any], known: tuple[Any, ...] | None = None) -> Callable[[str], list[Any]]:
        def listed(text: str) -> list[Any]:
            values = [convert(part) for part in text.split(",")]
            for value in values:
                if known is not None and value not in known:
                    raise argparse.ArgumentTypeError(f"{value} is none of {', '.join(map(str, known))}")
            return values

        return listed

    parser = argparse.ArgumentParser(
        prog="bench/load.sh",
        description="Measures loading, warm and cold, against peers and against the machine's limits, and prints one table.",
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds of everything (default: %(default)s)")
    parser.add_argument(
        "--bytes",
        type=several(lambda text: int(float(text))),
        default=[4 * 10**9, 12 * 10**9],
        help="sizes of the checkpoints (default: 4e9,12e9)",
    )
    parser.add_argument("--states", type=several(str, STATES), default=list(STATES), help="(default: warm,cold)")
    parser.add_argument("--tp", type=several(int, TP_SIZES), default=list(TP_SIZES), help="(default: 1,2,4,8)")
    parser.add_argument(
        "--peers",
        type=several(str, (*PEERS, "none")),
        default=list(PEERS),
        help=f"none, or some of {','.join(PEERS)} (default: all)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=harness.DEFAULT_DIR,
        help="where checkpoints are kept for the next time (default: %(default)s)",
    )
    # load.sh gives it.
    parser.add_argument("--peers-python", type=Path, required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs is at least 1")
    arguments.peers = [peer for peer in arguments.peers if peer != "none"]
    return arguments


def main() -> None:
    arguments = parse()
    programs = harness.build()
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[str, ...]] = []
    bars: list[Bar] = []
    remarks: list[str] = []
    # All of them first: where there is no room for one, nothing has been measured in vain.
    for model in [harness.checkpoint(folder, wanted) for wanted in arguments.bytes]:
        with tempfile.TemporaryDirectory(prefix="shardwright-load.") as scratch:
            bench = Bench(programs, arguments.peers_python, model, Path(scratch))
            cases: list[list[Row]] = []
            for state in arguments.states:
                # Cold files still pass through the page cache of who reads with it, but need not stay there.
                needs = bench.size * (2 if state == "warm" else 1) + SPARE_BYTES
                available = harness.meminfo("MemAvailable")
                if available < needs:
                    bench.remark(
                        f"{bench.size / 1e9:.1f} GB, {state}: left out, it needs {needs / 1e9:.1f} GB of memory and"
                        f" {available / 1e9:.1f} GB are available"
                    )
                    continue
                if state == "cold":
                    bench.choose_direct_threads()
                for tp in arguments.tp:
                    # At tp 1 a process for each rank is one process.
                    for processes in dict.fromkeys((1, tp)):
                        case = Case(state, tp, processes)
                        note(f"{bench.size / 1e9:.1f} GB, {case}")
                        rows = bench.rows(case, arguments.peers, arguments.runs)
                        cases.append(rows)
                        done = table_lines(rows, bench.size)
                        # An interrupted run has something to show, too.
                        note("\n".join("  " + "  ".join(line[4:]) for line in done))
                        lines += done
            bars += bars_of(cases, bench.size)
            remarks += [f"{bench.size / 1e9:.1f} GB: {remark}" for remark in bench.remarks]
    if not lines:
        fail("nothing was measured", "; ".join(remarks))

    print(f"machine: {harness.machine()}")
    print(f"command: bench/load.sh {shlex.join(command_line(sys.argv[1:]))}".rstrip())
    print(f"medians of {plural(arguments.runs, 'round', 's')}; ratios: 2 is twice as fast\n")
    harness.print_table(HEAD, lines, left=(0, HEAD.index("who")))
    print()
    for remark in remarks:
        print(f"- {remark}")
    missed = sum(not bar.met for bar in bars)
    if bars:
        print()
        harness.print_table(("bar", "measured", "asked", "met"), [bar.cells() for bar in bars])
        print(f"\n{missed} of {plural(len(bars), 'bar', 's')} missed; of cases left out none is asked")
    else:
        print("\nnone of these cases has a bar")
    sys.exit(1 if missed else 0)


def command_line(arguments: list[str]) -> list[str]:
    """What was given to load.sh: without what it adds itself, which comes first, and folders, which say nothing."""
    given = arguments[2:]
    return [text for at, text in enumerate(given) if text != "--dir" and (at == 0 or given[at - 1] != "--dir")]


if __name__ == "__main__":
    main()
