"""Tensors dealt to files, and the files written: headers, index, config."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skeletons.layers import tensors_of
from skeletons.models import Model
from skeletons.storage import DTYPE_BYTES, Tensor

# Fills a file after its header: the file, positioned there, and the bytes its tensors take.
WriteData = Callable[[BinaryIO, int], None]

ORDER_OF_DTYPES = list(DTYPE_BYTES)


def deal_into_files(tensors: Iterator[Tensor], max_file_bytes: int) -> list[list[Tensor]]:
    """Fills one file after the other; inside a file the tensors lie in the order in which `safetensors` writes them."""
    files: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if files[-1] and filled + tensor.bytes > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += tensor.bytes
    return [sorted(file, key=place_in_file) for file in files]


def place_in_file(tensor: Tensor) -> tuple[int, str]:
    return ORDER_OF_DTYPES.index(tensor.dtype), tensor.name


def safetensors_header(tensors: list[Tensor]) -> bytes:
    """Length prefix and JSON header, padded with spaces so that the data begins at a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for tensor in tensors:
        start, stop = stop, stop + tensor.bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, stop)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def empty_folder(folder: Path) -> None:
    """Makes `folder`, or exits when something is in it already."""
    if folder.exists() and not folder.is_dir():
        sys.exit(f"error: {folder} is not a folder\nhelp: name a folder that does not exist yet, or an empty one")
    if folder.is_dir() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty\nhelp: name a folder that does not exist yet, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)


def leave_hole(file: BinaryIO, data_bytes: int) -> None:
    """Extends the file by `data_bytes` that read as zeros and take no disk, where the file system can."""
    file.truncate(file.tell() + data_bytes)


def write_checkpoint(folder: Path, model: Model, write_data: WriteData = leave_hole) -> None:
    """Writes the files, the index and config.json. `write_data(file, data_bytes)` fills each file after its header.

    A single file is called `model.safetensors` and has no index, as `transformers` writes it.
    """
    empty_folder(folder)
    files = deal_into_files(tensors_of(model.config, inv_freq=model.inv_freq), model.max_file_bytes)
    weight_map: dict[str, str] = {}
    for index, tensors in enumerate(files):
        name = "model.safetensors"
        if len(files) > 1:
            name = model.file_name.format(index=index, number=index + 1, last=len(files) - 1, count=len(files))
        with (folder / name).open("wb") as file:
            file.write(safetensors_header(tensors))
            write_data(file, sum(tensor.bytes for tensor in tensors))
        weight_map |= {tensor.name: name for tensor in tensors}
    total = sum(tensor.bytes for tensors in files for tensor in tensors)
    if len(files) > 1:
        index_of_files = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index_of_files)
    write_json(folder / "config.json", model.config)
    print(f"{folder}: {len(weight_map)} tensors, {len(files)} files, {total / 1e9:.2f} GB")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
