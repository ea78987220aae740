#!/usr/bin/env bash
# Runs the style checks and the test suite. Arguments go to pytest, such as `-m slow` or a file.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest --numprocesses auto --dist worksteal "$@"
