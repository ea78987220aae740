#!/usr/bin/env bash
# Run by launch/tpu_pod.sh on each worker of a slice, from the checkout ~/entropy_rl/COMMIT.
#
#   tpu_worker.sh install [PREPARE [MOUNT]]   installs Python and the locked versions, then runs the shell command
#                                             PREPARE; once. The shell command MOUNT runs before it and
#                                             before each start
#   tpu_worker.sh start RUN_ID COMMAND...     starts the command in the background, unless it is running
#   tpu_worker.sh status RUN_ID               prints one line: absent, running, lost, or exited CODE
#   tpu_worker.sh stop RUN_ID SECONDS         sends SIGTERM, and SIGKILL if it still runs after SECONDS
#   tpu_worker.sh clear RUN_ID SECONDS        the same without SIGTERM: waits for it to end by itself
#   tpu_worker.sh log RUN_ID                  follows its output
#
# The output and exit code of a run are in ~/entropy_rl/runs/RUN_ID. Environment variables for it,
# including secrets, are read from ~/.entropy_rl.env, if it exists (NAME=value lines, sourced by bash).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
set -euo pipefail
checkout="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
verb="${1:---help}"
case "$verb" in
    install | start | status | stop | clear | log | hold) shift ;;
    *) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" && exit 0 ;;
esac

enter() {
    cd "$checkout"
    export PATH="$checkout/.venv/bin:$HOME/.local/bin:$PATH"
    if [ -e "$HOME/.entropy_rl.env" ]; then
        set -a
        # shellcheck disable=SC1091
        source "$HOME/.entropy_rl.env"
        set +a
    fi
}

if [ "$verb" = install ]; then
    enter
    printf '%s\n' "${2:-}" >.mount
    bash -euo pipefail .mount
    stamp="$(printf '%s\n' "${1:-}" | cat requirements.lock pyproject.toml - | cksum)"
    if [ "$(cat .installed 2>/dev/null)" != "$stamp" ]; then
        command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        uv venv --quiet --clear --python 3.12 .venv
        uv pip install --quiet --python .venv/bin/python -c requirements.lock --editable '.[tpu,gcs]'
        if [ -n "${1:-}" ]; then bash -euo pipefail -c "$1"; fi
        echo "$stamp" >.installed
    fi
    exit
fi

run="$HOME/entropy_rl/runs/${1:?RUN_ID}"
shift
mkdir -p "$run"

# Whoever holds the lock is the run; a number of a process could be another's after a reboot.
running() { ! flock --shared --nonblock "$run/lock" true; }
exited() { [ -e "$run/exit" ]; }
report() { echo "entropy_rl-worker: $(hostname) $*"; }
send() { # SIGNAL, to the command, or to what runs before it
    if [ -s "$run/pid" ]; then
        kill "-$1" "$(cat "$run/pid")" || true
    elif [ -s "$run/group" ]; then
        kill "-$1" -- "-$(cat "$run/group")" || true
    fi
}

case "$verb" in
    start)
        if running; then report running && exit; fi
        rm -f "$run/exit" "$run/pid" "$run/group" "$run/stopped"
        setsid nohup bash "${BASH_SOURCE[0]}" hold "$(basename "$run")" "$@" >>"$run/log" 2>&1 </dev/null &
        # MOUNT may take minutes.
        for ((tenths = 0; tenths < 300; tenths++)); do
            if [ -e "$run/pid" ]; then report started && exit; fi
            if [ -e "$run/group" ]; then
                running || break
                tenths=0
            fi
            sleep 0.1
        done
        if [ -e "$run/pid" ]; then report started && exit; fi # and ended since
        report "did not start, see $run/log" && exit 1
        ;;
    hold) # internal: in the background, for as long as the run lives
        exec 9>>"$run/lock"
        flock --timeout 5 9 || exit 0
        echo $$ >"$run/group" # `setsid` has made it one
        enter
        bash -euo pipefail .mount 9>&- # a machine may have come up again
        if [ -e "$run/stopped" ]; then exit; fi
        export ENTROPY_RL_DISTRIBUTED=auto
        printf '== %s' "$(date -u +%FT%TZ)" && printf ' %q' "$@" && echo
        "$@" 9>&- &
        echo $! >"$run/pid"
        code=0
        wait $! || code=$?
        echo "$code" >"$run/exit.new" && mv "$run/exit.new" "$run/exit"
        echo "== $(date -u +%FT%TZ) exit code $code"
        ;;
    status)
        if running; then
            report running
        elif exited; then
            report exited "$(cat "$run/exit")"
        elif [ -e "$run/pid" ]; then
            report lost # the machine went down under it
        else
            report absent
        fi
        ;;
    stop | clear)
        touch "$run/stopped" # before the command: it does not start any more
        if running && [ "$verb" = stop ]; then send TERM; fi
        for ((tenths = 0; tenths < ${1:?SECONDS} * 10; tenths++)); do
            running || break
            sleep 0.1
        done
        if running; then
            report "still there after $1 s: killed"
            send KILL
            while running; do sleep 0.1; done
        fi
        bash "${BASH_SOURCE[0]}" status "$(basename "$run")"
        ;;
    log)
        exec tail -n 200 -F "$run/log"
        ;;
esac
