"""Commands as calls: what they return, and the exceptions that they raise."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import shardwright


def test_a_checkpoint_is_inspected_planned_checked_and_sliced(checkpoint, planned, tmp_path):
    seen = shardwright.inspect(checkpoint)
    plan = planned(4)
    assert shardwright.check(plan)["tensors"] > 0
    held = shardwright.slices(plan, 3)
    assert (held["rank"], held["world_size"]) == (3, 4)
    assert isinstance(seen, dict) and json.dumps(seen)
    exported = shardwright.export(plan, tmp_path / "exported", max_file_size="40 KiB")
    assert exported["verified"] is True
    assert shardwright.check(tmp_path / "exported")["ranks"] == 4


def test_layouts_are_judged(checkpoint):
    judged = shardwright.layouts(checkpoint, topology="dgx-h100", concurrency=4, context_len=64)
    assert judged["machines"]


@pytest.mark.parametrize(
    ("exception", "words", "call"),
    [
        (shardwright.BadInput, "nowhere", lambda: shardwright.inspect("nowhere")),
        (shardwright.UsageError, "--tp", lambda: shardwright.plan("x", "y", tp="many")),
        (shardwright.UsageError, "rank 9 does not exist", None),
        (shardwright.AnswerIsNo, "never proven", None),
    ],
)
def test_errors_are_exceptions_with_the_command_lines_words(exception, words, call, planned, tmp_path):
    plan = planned(2, dp=2)
    if call is None and "rank 9" in words:
        call = lambda: shardwright.slices(plan, 9)
    elif call is None:
        call = lambda: shardwright.export(plan, tmp_path / "e", format="sharded-state", engine="vllm")
    with pytest.raises(exception, match=words):
        call()
    assert issubclass(exception, shardwright.ShardwrightError)


def test_other_threads_run_while_a_rank_is_loaded(planned):
    plan = planned(2)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(20):
        shardwright.load(plan, 0, device="host")
    done.set()
    thread.join()
    assert len(ticks) > 1


def test_ctrl_c_ends_a_wait(tmp_path):
    # A plan that is a pipe which nobody writes to: what reads it waits.
    pipe = tmp_path / "plan.yaml"
    os.mkfifo(pipe)
    with pytest.raises(shardwright.ShardwrightError):
        shardwright.check(pipe)

    # What runs in a shell's background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoint = tmp_path / "slow"
    checkpoint.mkdir()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            for _ in range(1000):
                try:
                    shardwright.inspect(checkpoint)
                except shardwright.BadInput:
                    pass
    # The next call is not interrupted.
    with pytest.raises(shardwright.BadInput):
        shardwright.inspect(Path("nowhere"))
    signal.signal(signal.SIGINT, before)
