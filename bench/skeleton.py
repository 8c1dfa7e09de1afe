"""Makes a full-size skeleton of a known model: true headers, config and index, and a sparse hole for the weights.

    python3 bench/skeleton.py llama-3.1-70b DIR

The files have the names, the sizes and the tensors that the hub has, yet take no more disk than their headers: enough to
plan, check and slice, and reading the data gives zeros. Standard library only; the same model gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from skeletons.files import WriteData, write_checkpoint
from skeletons.layers import tensors_of
from skeletons.models import MODELS, Model, llama

__all__ = ["MODELS", "Model", "WriteData", "llama", "tensors_of", "write_checkpoint"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, MODELS[arguments.model])


if __name__ == "__main__":
    main()
