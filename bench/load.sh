#!/usr/bin/env bash
# Measures loading against peers and the machine's limits, in one table: bench/load.sh --help
#
# The peers live in a virtual environment, made once in $SHARDWRIGHT_BENCH_VENV (~/.cache/shardwright-bench/venv unless given)
# and brought up to date when requirements.txt changes.
set -euo pipefail
cd "$(dirname "$0")"

venv=${SHARDWRIGHT_BENCH_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/shardwright-bench/venv}
# Copied last: an install that was cut short is not taken for a whole one.
if ! cmp --silent requirements.txt "$venv/installed.txt"; then
    echo "installing the peers into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt >&2
    cp requirements.txt "$venv/installed.txt"
fi
exec python3 -B load.py --peers-python "$venv/bin/python" "$@"
