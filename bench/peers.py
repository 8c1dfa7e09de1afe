"""Loads a checkpoint with a library that others use, as load.py asks for it, and says in JSON what that took.

    python peers.py PEER --slices rank0.json [--slices rank1.json ...] [--rank R --meet HOST:PORT] [--check] FILE...

Runs in the environment of requirements.txt. Without --rank this process loads all ranks; with it one, beside others that
load theirs. Every rank's slices end up one after another in one buffer of their size, which is made beforehand and for which
huge pages are advised. It prints `ready` after its imports and after it met the others, waits for a line on standard input,
and measures from there. Each peer is used as its documentation, or the engine that uses it most, does; see README.md.
"""

from __future__ import annotations

import argparse
import json
import mmap
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

# Bytes an element, by the format's names; what packs several into a byte is not loaded here.
ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
ALIGNMENT = 64

Cut = tuple[slice, ...]
# One tensor's cut and where that goes.
Places = list[tuple[Cut, torch.Tensor]]


class Destination:
    """One rank's memory, as `shardwright slices` describes it."""

    def __init__(self, slices: Path) -> None:
        described = json.loads(slices.read_text())
        self.rank: int = described["rank"]
        self.world_size: int = described["world_size"]
        self.boxes = {name: tensor["boxes"] for name, tensor in described["tensors"].items()}
        # By tensor: cut, extent, first and last byte in the buffer.
        self.layout: dict[str, list[tuple[Cut, list[int], int, int]]] = {}
        end = 0
        for name, tensor in described["tensors"].items():
            for box in tensor["boxes"]:
                extent = [stop - start for start, stop in zip(box["start"], box["stop"], strict=True)]
                elements = 1
                for length in extent:
                    elements *= length
                start = -(-end // ALIGNMENT) * ALIGNMENT
                end = start + elements * ELEMENT_BYTES[tensor["dtype"]]
                cut = tuple(slice(*ends) for ends in zip(box["start"], box["stop"], strict=True))
                self.layout.setdefault(name, []).append((cut, extent, start, end))
        self.memory = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.buffer = torch.frombuffer(self.memory, dtype=torch.uint8)

    def places(self, name: str, dtype: torch.dtype) -> Places:
        return [(cut, self.buffer[start:end].view(dtype).view(extent)) for cut, extent, start, end in self.layout[name]]

    def fill(self, name: str, tensor: torch.Tensor) -> None:
        """Copies this rank's cuts out of a whole tensor."""
        for cut, place in self.places(name, tensor.dtype):
            place.copy_(tensor[cut])


def fill_all(ranks: list[Destination], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        for rank in ranks:
            rank.fill(name, tensor)


def safetensors(backend: str) -> Callable[[list[str], list[Destination]], None]:
    """Opens each file once and asks for every rank's slice of each of its tensors."""
    from safetensors import safe_open

    def load(files: list[str], ranks: list[Destination]) -> None:
        for file in files:
            with safe_open(file, framework="pt", device="cpu", backend=backend) as opened:
                for name in opened.offset_keys():
                    for rank in ranks:
                        for at, (cut, *_) in enumerate(rank.layout[name]):
                            part = opened.get_slice(name)[cut] if cut else opened.get_tensor(name)
                            rank.places(name, part.dtype)[at][1].copy_(part)

    return load


def fastsafetensors() -> Callable[[list[str], list[Destination]], None]:
    """As vLLM does: as many files at a time as there are processes, each process reads one, tensors are cut from memory.

    Several processes exchange what they read through torch.distributed: `get_sharded` scatters along a dimension.
    """
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def sharded_dimension(rank: Destination, name: str, shape: list[int]) -> int | None:
        """The dimension whose even cut is this rank's box, -1 for a whole tensor, None where neither is."""
        if len(rank.boxes[name]) != 1:
            return None
        box = rank.boxes[name][0]
        cut = [at for at, length in enumerate(shape) if (box["start"][at], box["stop"][at]) != (0, length)]
        if not cut:
            return -1
        dimension = cut[0]
        share, rest = divmod(shape[dimension], rank.world_size)
        even = (rank.rank * share, (rank.rank + 1) * share)
        if len(cut) == 1 and rest == 0 and (box["start"][dimension], box["stop"][dimension]) == even:
            return dimension
        return None

    def load(files: list[str], ranks: list[Destination]) -> None:
        group = dist.group.WORLD if dist.is_initialized() else SingleGroup()
        for first in range(0, len(files), group.size()):
            loader = SafeTensorsFileLoader(group, "cpu", nogds=True)
            loader.add_filenames({at: [file] for at, file in enumerate(files[first : first + group.size()])})
            loaded = loader.copy_files_to_device()
            try:
                for name in loader.get_keys():
                    dimension = None
                    if group.size() > 1:
                        dimension = sharded_dimension(ranks[0], name, loader.get_shape(name))
                    if dimension is None:
                        tensor = loaded.get_tensor(name)
                        for rank in ranks:
                            rank.fill(name, tensor)
                    else:
                        tensor = loaded.get_sharded(name, dimension)
                        ranks[0].places(name, tensor.dtype)[0][1].copy_(tensor)
                    del tensor
            finally:
                loaded.close()
                loader.close()

    return load


def runai() -> Callable[[list[str], list[Destination]], None]:
    """Streams whole tensors, whose views are cut before the next one comes; several processes share the reading."""
    from runai_model_streamer import SafetensorsStreamer

    def load(files: list[str], ranks: list[Destination]) -> None:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files, device="cpu", is_distributed=dist.is_initialized(), owned=False)
            fill_all(ranks, streamer.get_tensors())

    return load


# Made, and with it imported, before the time begins.
PEERS = {
    "safetensors-mmap": lambda: safetensors("mmap"),
    "safetensors-pread": lambda: safetensors("pread"),
    "fastsafetensors": fastsafetensors,
    "runai-streamer": runai,
}


def bytes_from_storage() -> int:
    """What this process has had read from storage, all its threads together."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=sorted(PEERS), metavar="PEER", help=", ".join(sorted(PEERS)))
    parser.add_argument("--slices", type=Path, action="append", required=True, help="what `shardwright slices` says of a rank")
    parser.add_argument("--rank", type=int, help="this process's rank, with one process for each rank")
    parser.add_argument("--meet", help="where the processes of all ranks meet, HOST:PORT")
    parser.add_argument("--check", action="store_true", help="sum up the buffers afterwards, outside the measured time")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()

    load = PEERS[arguments.peer]()
    ranks = [Destination(slices) for slices in arguments.slices]
    if arguments.rank is not None:
        # Who needs no others meets them all the same: outside the measured time it costs nothing.
        dist.init_process_group(
            "gloo", init_method=f"tcp://{arguments.meet}", rank=arguments.rank, world_size=ranks[0].world_size
        )
    before_peak, before_read = peak_bytes(), bytes_from_storage()
    print("ready", flush=True)
    sys.stdin.readline()

    begin = time.monotonic()
    load(arguments.files, ranks)
    end = time.monotonic()

    result = {
        "begin": begin,
        "end": end,
        "read_bytes": bytes_from_storage() - before_read,
        "grown_bytes": peak_bytes() - before_peak,
        "destination_bytes": sum(len(rank.memory) for rank in ranks),
        "sums": [zlib.crc32(rank.buffer.numpy()) for rank in ranks] if arguments.check else None,
    }
    print(json.dumps(result), flush=True)
    if dist.is_initialized():
        # Nobody leaves while others still exchange.
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
