"""Writes a Llama-shaped checkpoint of a wanted size with random weights, to measure loads on.

    python3 bench/checkpoint.py DIR                          # about 4 GB
    python3 bench/checkpoint.py DIR --bytes 16_000_000_000

bf16, several files, 32 query and 8 key/value heads; the number of layers makes up the size, so tp 1, 2, 4 and 8 divide
every module. Standard library only; the same size gives the same bytes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import BinaryIO

from skeleton import Model, WriteData, llama, tensors_of, write_checkpoint

BLOCK_BYTES = 64 * 2**20
MAX_FILE_BYTES = 10**9


def sized_model(wanted_bytes: int) -> Model:
    """The model whose weights come closest to `wanted_bytes`; it has at least one layer."""

    def with_layers(layers: int) -> Model:
        config = llama(
            hidden_size=4096,
            intermediate_size=14336,
            max_position_embeddings=8192,
            num_attention_heads=32,
            num_hidden_layers=layers,
            num_key_value_heads=8,
            rope_theta=500000.0,
            vocab_size=32000,
        )
        return Model(config, MAX_FILE_BYTES)

    def weight_bytes(layers: int) -> int:
        return sum(tensor.bytes for tensor in tensors_of(with_layers(layers).config))

    without_layers = weight_bytes(0)
    layer_bytes = weight_bytes(1) - without_layers
    return with_layers(max(1, round((wanted_bytes - without_layers) / layer_bytes)))


def random_writer(seed: int) -> WriteData:
    """Fills files from one random block, each time from another place in it, so that no two tensors look alike."""
    generator = random.Random(seed)
    block = memoryview(generator.randbytes(BLOCK_BYTES))

    def write_data(file: BinaryIO, data_bytes: int) -> None:
        while data_bytes > 0:
            start = generator.randrange(BLOCK_BYTES // 2)
            written = file.write(block[start : start + min(data_bytes, BLOCK_BYTES // 2)])
            data_bytes -= written

    return write_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--bytes", type=int, default=4 * 10**9, help="size to come closest to, with whole layers (default: %(default)s)"
    )
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, sized_model(arguments.bytes), random_writer(seed=1))


if __name__ == "__main__":
    main()
