"""What `shardwright` says of a plan, read from its JSON: the role of each stored tensor, and what each rank holds."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A stored tensor, as the plan sees it."""

    role: str
    shape: list[int]
    # A rank may hold nothing of it: a bias that is added once, or an expert of another rank.
    may_be_absent: bool
    # Whole experts of it are dealt.
    by_experts: bool
    # Groups of what is dealt, 1 where nothing is cut: those that ranks share only when there are fewer of them.
    groups: int


@dataclass(frozen=True)
class Plan:
    """A plan: its stored tensors, those of a kind together, and what each tensor-parallel rank holds of them."""

    stored: dict[str, Stored]
    kinds: list[list[str]]
    held: list[dict[str, Any]]


def shardwright(binary: Path, *arguments: str | Path) -> str:
    """The command's stdout; raises RuntimeError with its stderr where it refuses."""
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"shardwright {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: `layers.{0-1,3}.weight` for three."""
    parts = re.split(r"\{([\d,-]+)\}", pattern)
    numbers = [itertools.chain(*map(run_of_numbers, part.split(","))) for part in parts[1::2]]
    for chosen in itertools.product(*numbers):
        yield "".join(itertools.chain(*itertools.zip_longest(parts[::2], chosen, fillvalue="")))


def run_of_numbers(text: str) -> Iterator[str]:
    first, _, last = text.partition("-")
    return map(str, range(int(first), int(last or first) + 1))


def make_plan(binary: Path, folder: Path, options: list[str], tp: int, pp: int) -> Plan:
    """Plans the checkpoint in `folder` and asks for all of the plan that ranks need."""
    file = folder / "plan.yaml"
    shardwright(binary, "plan", folder, "--topology", "host", *options, "-o", file)
    stored: dict[str, Stored] = {}
    kinds: list[list[str]] = []
    for group in json.loads(shardwright(binary, "explain", file, "*", "--json"))["groups"]:
        partition = group["partition"]
        by_experts = '"ep"' in json.dumps(partition)
        may_be_absent = by_experts or partition.get("whole") == "first-rank"
        groups = partition.get("split", {}).get("segments", [{}])[0].get("groups", 1)
        kinds.append(list(itertools.chain(*map(expand, group["names"]))))
        stored |= dict.fromkeys(kinds[-1], Stored(group["role"], group["shape"], may_be_absent, by_experts, groups))
    held: list[dict[str, Any]] = [{} for _ in range(tp)]
    for rank in range(tp * pp):
        for name, of_rank in json.loads(shardwright(binary, "slices", file, "--rank", str(rank)))["tensors"].items():
            # The stages of a tensor-parallel rank run in one process.
            if held[rank % tp].setdefault(name, of_rank) != of_rank:
                raise ValueError(f"stages hold different slices of {name}")
    return Plan(stored, kinds, held)


def read_slices(folder: Path, held: dict[str, Any]) -> dict[str, Tensor]:
    """What a rank holds of each tensor: its boxes, one after the other, and rows of zeros."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in held.keys() & set(file.keys()):
                tensors[name] = one_slice(file.get_slice(name), held[name])
    if tensors.keys() != held.keys():
        raise ValueError(f"slices of tensors that are in no file: {sorted(held.keys() - tensors.keys())}")
    return tensors


def one_slice(stored: Any, held: dict[str, Any]) -> Tensor:
    """The boxes of one stored tensor, laid along the dimension in which they start at different places."""
    boxes = held["boxes"]
    parts = [stored[tuple(map(slice, box["start"], box["stop"]))] for box in boxes]
    starts = zip(*(box["start"] for box in boxes), strict=True)
    split = next((dim for dim, places in enumerate(starts) if len(set(places)) > 1), 0)
    if held.get("pad_rows"):
        parts.append(torch.zeros(held["pad_rows"], *parts[0].shape[1:], dtype=parts[0].dtype))
    tensor = torch.cat(parts, dim=split)
    if list(tensor.shape) != held["shape"]:
        raise ValueError(f"boxes make {list(tensor.shape)}, but the slice is said to be {held['shape']}")
    return tensor


def fill_absent(tensors: dict[str, Tensor], plan: Plan, rank: int) -> dict[str, Tensor]:
    """Puts zeros in place of what other ranks add: biases that are added once, and experts of others."""
    filled = dict(tensors)
    for name, stored in plan.stored.items():
        held = plan.held[rank].get(name)
        if held is None and not stored.may_be_absent:
            raise ValueError(f"rank {rank} holds nothing of {name}")
        if held is None:
            filled[name] = torch.zeros(stored.shape)
        elif stored.by_experts:
            filled[name] = torch.zeros(stored.shape, dtype=tensors[name].dtype)
            (box,) = held["boxes"]
            filled[name][tuple(map(slice, box["start"], box["stop"]))] = tensors[name]
    return filled
