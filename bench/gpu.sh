#!/usr/bin/env bash
# Measures loading into GPUs on this machine; see gpu.py.
set -euo pipefail
exec python3 "$(dirname "$0")/gpu.py" "$@"
