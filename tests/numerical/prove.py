"""Proves the planner's slices by computing with them: the logits of several ranks against the whole model's.

    tests/numerical/run                                        # makes what it needs below target/, then all cases
    python3 tests/numerical/prove.py --only llama "llama AWQ"  # some families

Of each family a tiny model with random weights is saved by `transformers`, planned, and run by one process a rank,
which reads its own slices and no other weight. Which collective follows which module is read from the plan.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from families import FAMILIES, VOCABULARY, Family, Layout
from planned import make_plan
from quantised import Scheme
from ranks import Case, load, logits_of_ranks, replace_means
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

# The stored tensors that each part of a model's state is made of.
Sources = dict[str, list[str]]

TOLERANCE = 1e-4
# The largest logit lies between these, so that the tolerance means something.
SIZE_OF_LOGITS = (0.3, 30.0)


def randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Adds noise to the whole state, norms and biases too: a constant tensor would hide a wrong slice."""
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            scale = 0.3 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5
            tensor += scale * torch.randn(tensor.shape, generator=generator)


def write(family: Family, folder: Path, generator: torch.Generator) -> None:
    """Writes the checkpoint: the model's config and its weights, as `transformers` names them on disk."""
    model = family.model(family.config)
    randomise(model, generator)
    model.save_pretrained(folder)


def quantise(scheme: Scheme, folder: Path, generator: torch.Generator) -> tuple[dict[str, Tensor], Sources]:
    """Stores the linear weights of a checkpoint's layers after `scheme`; the state that they then stand for."""
    state = load_file(folder / "model.safetensors")
    stored: dict[str, Tensor] = {}
    sources: Sources = {}
    for name, weight in state.items():
        module, _, _ = name.rpartition(".")
        parts = scheme.quantise(weight, generator) if module.endswith("_proj") else {"weight": weight}
        stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        sources[name] = [f"{module}.{part}" for part in parts]
        if len(parts) > 1:
            state[name] = scheme.dequantise(parts, {part: [0, 0] for part in parts})
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme.config}))
    return state, sources


def trace(family: Family, state: dict[str, Tensor]) -> Sources:
    """Finds what each part of a model is made of: loads numbers in place of the stored tensors and looks for them."""
    names = sorted(state)
    numbered = {name: torch.full(state[name].shape, float(number)) for number, name in enumerate(names)}
    loaded = load(family.model, family.config, numbered).state_dict()
    sources = {name: [names[int(number)] for number in tensor.unique()] for name, tensor in loaded.items()}
    unused = set(names).difference(*sources.values())
    if unused:
        raise ValueError(f"nothing is made of {sorted(unused)}")
    return sources


def run_whole(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, int]]:
    """The logits, and over how many features each module that has weights takes a mean."""
    lengths: dict[str, int] = {}

    def note(path: str, mean: Tensor, length: int) -> Tensor:
        lengths[path] = length
        return mean

    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            replace_means(module, lambda mean, length, path=path: note(path, mean, length))
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    least, most = SIZE_OF_LOGITS
    if not least < logits.abs().max() < most:
        raise ValueError(f"the largest logit is {logits.abs().max():.2g}, so a difference of {TOLERANCE} says little")
    return logits, lengths


@dataclass(frozen=True)
class Outcome:
    """What came of a layout."""

    layout: Layout
    # The largest difference of a logit.
    difference: float = math.inf
    # What kept it from being computed.
    error: Exception | None = None
    # Tensors of which two ranks' slices were exchanged, and those of which it made no difference.
    exchanged: int = 0
    unseen: tuple[str, ...] = ()

    def good(self) -> bool:
        return self.difference <= TOLERANCE and not self.unseen


@dataclass(frozen=True)
class Prepared:
    """A checkpoint, and what the whole model makes of it."""

    sources: Sources
    inputs: dict[str, Tensor]
    logits: Tensor
    mean_lengths: dict[str, int]


def prepare(family: Family, folder: Path, seed: int) -> Prepared:
    """Writes the checkpoint into `folder` and runs the whole model."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for what a model draws when it is built
    write(family, folder, generator)
    if family.scheme is None:
        state = load_file(folder / "model.safetensors")
        sources = trace(family, state)
    else:
        state, sources = quantise(family.scheme, folder, generator)
    # Every token once, so that every row of the embedding is looked up.
    inputs = {name: torch.randperm(VOCABULARY, generator=generator).view(3, -1) for name in family.inputs}
    return Prepared(sources, inputs, *run_whole(load(family.model, family.config, state), inputs))


def prove(family: Family, binary: Path, seed: int) -> Iterator[Outcome]:
    """Each layout's outcome; with the first layout it is also tried whether wrong slices are seen."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            whole = prepare(family, folder, seed)
        except ValueError as error:
            yield from (Outcome(layout, error=error) for layout in family.layouts)
            return
        for layout in family.layouts:
            try:
                plan = make_plan(binary, folder, layout.options(), layout.tp, layout.pp)
                case = Case(family, layout, folder, plan, whole.sources, whole.mean_lengths, whole.inputs)
                outcome = Outcome(layout, difference(whole.logits, case))
                yield outcome if layout != family.layouts[0] else exchange(whole.logits, case, outcome)
            except (RuntimeError, ValueError) as error:
                yield Outcome(layout, error=error)


def difference(whole: Tensor, case: Case) -> float:
    """The largest of a logit; infinite where the shapes differ or a logit is no number."""
    of_ranks = logits_of_ranks(case)
    if any(logits.shape != whole.shape or not logits.isfinite().all() for logits in of_ranks):
        return math.inf
    return max((whole - logits).abs().max().item() for logits in of_ranks)


def exchange(whole: Tensor, case: Case, outcome: Outcome) -> Outcome:
    """Gives the first rank the last one's slice and the reverse, of one tensor of each kind at a time."""
    exchanged, unseen = 0, []
    for name in (kind[-1] for kind in case.plan.kinds):
        held = [dict(of_rank) for of_rank in case.plan.held]
        if name not in held[0].keys() & held[-1].keys() or name.endswith(case.family.unseen):
            continue
        if held[0][name] == held[-1][name]:
            continue
        held[0][name], held[-1][name] = held[-1][name], held[0][name]
        exchanged += 1
        try:
            if difference(whole, replace(case, plan=replace(case.plan, held=held))) <= TOLERANCE:
                unseen.append(name)
        except RuntimeError:  # seen even sooner: the slice does not fit the others
            pass
    return replace(outcome, exchanged=exchanged, unseen=tuple(unseen))


def report(name: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Prints a line for each outcome, and below it what is wrong."""
    for outcome in outcomes:
        shown = "none" if outcome.error else f"{outcome.difference:.1e}"
        verdict = "" if outcome.good() else "  FAILED"
        print(f"{name:<22}{outcome.layout!s:<24}{shown:>14}{verdict}", flush=True)
        for line in str(outcome.error or "").strip().splitlines():
            print(f"    {line}", flush=True)
        for tensor in outcome.unseen:
            print(f"    two ranks' slices of {tensor} were exchanged: not seen", flush=True)
        yield outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--binary", type=Path, default=root / "target/release/shardwright")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", choices=FAMILIES, default=list(FAMILIES))
    arguments = parser.parse_args()
    if not arguments.binary.is_file():
        parser.error(f"{arguments.binary} is missing: cargo build --release makes it")
    torch.set_num_threads(1)  # ranks share the processors, and are forked from here
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    print(f"{'family':<22}{'layout':<24}{'max difference':>14}")
    outcomes = [
        (name, outcome)
        for name, family in FAMILIES.items()
        if name in arguments.only
        for outcome in report(name, prove(family, arguments.binary, seed=zlib.crc32(name.encode())))
    ]
    failed = [f"{name}, {outcome.layout}" for name, outcome in outcomes if not outcome.good()]
    if failed:
        print(f"{len(failed)} of {len(outcomes)} cases failed: {'; '.join(failed)}")
        return 1
    exchanged = sum(outcome.exchanged for _, outcome in outcomes)
    print(f"{exchanged} times two ranks' slices of a tensor were exchanged: seen each time")
    print(f"{len(outcomes)} cases, all within 1e-4")
    return 0


if __name__ == "__main__":
    sys.exit(main())
