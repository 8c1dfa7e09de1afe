"""Lists the tensors of a checkpoint with Python's `safetensors`, and prints how many seconds that took, imports left out.

    python3 bench/list_headers.py DIR [TIMES]

What a planner in Python would have to do first: open each file, and ask for the dtype and shape of each tensor.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from safetensors import safe_open


def list_headers(folder: Path) -> int:
    """Asks for every tensor's dtype and shape; gives how many there are."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                tensor = file.get_slice(name)
                tensor.get_dtype(), tensor.get_shape()
                count += 1
    return count


def main() -> None:
    folder, times = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    begin = time.perf_counter()
    for _ in range(times):
        count = list_headers(folder)
    print(time.perf_counter() - begin, count)


if __name__ == "__main__":
    main()
