#!/usr/bin/env bash
# Runs a command, such as `pytest tests/refit`, in a copy of the tree without the engine: nothing but speed may depend on it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar --exclude ./.git --exclude ./.venv --exclude ./site --exclude __pycache__ -cf - . | tar -xf - -C "$folder"
rm -r "$folder/src/refit/engine" "$folder/tests/refit/engine"
cd "$folder"
PYTHONPATH=$folder/src "$@"
