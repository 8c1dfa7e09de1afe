"""Compiles fingerprint.cu to PTX with NVRTC, and assembles the PTX for every architecture with ptxas.

    ./build            writes fingerprint.ptx
    ./build --check    says whether fingerprint.ptx is what fingerprint.cu gives, and changes nothing

Neither needs a GPU. `build` is this program in an environment of its own, with the packages of requirements.txt.
"""

import argparse
import ctypes
import difflib
import pathlib
import re
import subprocess
import sys
import tempfile

import nvidia.cuda_nvcc
import nvidia.cuda_nvrtc

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE / "fingerprint.cu"
PTX = HERE / "fingerprint.ptx"

# The oldest architecture that is supported; PTX for it runs on all later ones.
OLDEST = "compute_70"
ARCHITECTURES = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_101", "sm_120"]

# NVRTC stamps its own version, which drivers older than it refuse, though nothing newer than this is used.
VERSION = "7.0"


def folder(package) -> pathlib.Path:
    return pathlib.Path(list(package.__path__)[0])


def compiled() -> str:
    library = ctypes.CDLL(str(next((folder(nvidia.cuda_nvrtc) / "lib").glob("libnvrtc.so*"))))
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()
    check(library, library.nvrtcCreateProgram(ctypes.byref(program), source, b"fingerprint.cu", 0, None, None))
    options = [f"--gpu-architecture={OLDEST}".encode(), b"--std=c++17", b"--disable-warnings"]
    result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    check(library, result)
    check(library, library.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(library, library.nvrtcGetPTX(program, text))
    # Comments name the compiler; of two builds of one version they may differ.
    lines = [line.rstrip() for line in text.value.decode().splitlines() if not line.startswith("//")]
    ptx = "\n".join(line for line in lines if line) + "\n"
    ptx, count = re.subn(r"(?m)^\.version .*$", f".version {VERSION}", ptx)
    assert count == 1, "one .version"
    return "// Made by `build` of fingerprint.cu; do not edit.\n" + ptx


def check(library, result: int) -> None:
    if result != 0:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(f"NVRTC: {library.nvrtcGetErrorString(result).decode()}")


def assemble(ptx: str) -> None:
    ptxas = folder(nvidia.cuda_nvcc) / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch) / "fingerprint.ptx"
        source.write_text(ptx)
        for architecture in ARCHITECTURES:
            command = [ptxas, "--verbose", f"--gpu-name={architecture}", source, "-o", pathlib.Path(scratch) / "out"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"ptxas {architecture}: {done.stderr}")
            registers = re.search(r"Used (\d+) registers", done.stderr)
            print(f"{architecture}: {registers.group(1) if registers else '?'} registers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    ptx = compiled()
    assemble(ptx)
    if not arguments.check:
        PTX.write_text(ptx)
        print(f"wrote {PTX.name}")
        return
    committed = PTX.read_text()
    if committed != ptx:
        sys.stdout.writelines(difflib.unified_diff(committed.splitlines(True), ptx.splitlines(True), "committed", "compiled"))
        sys.exit(f"{PTX.name} is not what {SOURCE.name} gives: run ./build")
    print(f"{PTX.name} is what {SOURCE.name} gives")


if __name__ == "__main__":
    main()
