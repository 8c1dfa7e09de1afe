#!/usr/bin/env bash
# Proves exports against SGLang without a GPU, and prints one table; arguments go to prove_sglang.py. It installs what it needs into
# $SHARDWRIGHT_SGLANG_ENV (~/.cache/shardwright-sglang): Python 3.11 with venv, a Rust toolchain, 6 GB of disk and a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."

environment=${SHARDWRIGHT_SGLANG_ENV:-$HOME/.cache/shardwright-sglang}
requirements=tests/engines/requirements-sglang.in
echo "installing into $environment" >&2
# The requirements are copied there last, so that an installation which broke off is done again.
if ! cmp -s "$requirements" "$environment/requirements.in"; then
    python3 -m venv --clear "$environment"
    pip=("$environment/bin/pip" --quiet --disable-pip-version-check)
    "${pip[@]}" install --requirement "$requirements"
    "${pip[@]}" install --no-deps sglang==0.5.23
    cp "$requirements" "$environment/requirements.in"
fi
cargo build --release --locked --bin shardwright
exec "$environment/bin/python" tests/engines/prove_sglang.py "$@"
