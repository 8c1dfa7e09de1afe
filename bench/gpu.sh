#!/usr/bin/env bash
# Loads into this machine's GPUs against a plain pinned copy, in one table: bench/gpu.sh --help
set -euo pipefail
exec python3 -B "$(dirname "$0")/gpu.py" "$@"
