#!/usr/bin/env bash
# Train in several processes on this machine, each with its own CPU devices, as on the hosts of a pod.
# The settings are those of `entropy-rl train`:
#
#   local_multiprocess.sh [--processes N] [--devices D] [--logs DIR] [--dry-run] SETTINGS
#   local_multiprocess.sh --processes 2 --devices 2 --config configs/countdown_grpo_entropy.yaml \
#       --run.directory runs/two --mesh.fsdp -1
#
#   --processes N   by default 2
#   --devices D     devices of each process, by default 2
#   --logs DIR      for one log file per process; by default a new directory in /tmp
#
# SIGTERM and Ctrl-C go to every process: they save and exit, and the same command resumes. If a
# process dies, the others get SIGTERM, and SIGKILL after GRACE seconds (30). The exit code is 2 if a
# process reports bad input, or else that of a failed process, 128 + the signal received, or 0.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell

# shellcheck source=launch/cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

processes=2 devices=2 logs="" GRACE="${GRACE:-30}"
while (($# > 0)); do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --dry-run) DRY_RUN=1 && shift && continue ;;
        --processes | --devices)
            [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "$1 takes a number"
            declare "${1#--}=$2"
            ;;
        --logs)
            [ -n "${2:-}" ] || die "--logs takes a directory"
            logs="$2"
            ;;
        *) break ;;
    esac
    shift 2
done
need_numbers GRACE
(($# > 0)) || die "nothing to run; give the settings of entropy-rl train, such as --config FILE (--help explains)"

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        # Nobody answers: it is free.
        if ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port" && return; fi
    done
}

port="$(free_port)"
# A device that waits 40 seconds for the others ends the process, by default: too few for a busy machine.
xla_flags="--xla_cpu_collective_call_terminate_timeout_seconds=600 ${XLA_FLAGS:+$XLA_FLAGS }"
xla_flags+="--xla_force_host_platform_device_count=$devices"
command_of() { # of process $1, into COMMAND
    COMMAND=(
        env JAX_PLATFORMS=cpu "XLA_FLAGS=$xla_flags"
        "ENTROPY_RL_DISTRIBUTED=127.0.0.1:$port,$processes,$1" entropy-rl train "${@:2}"
    )
}
if [ "$DRY_RUN" = 1 ]; then
    for ((i = 0; i < processes; i++)); do
        command_of "$i" "$@"
        run "${COMMAND[@]}"
    done
    exit
fi

need_tools setsid
command -v entropy-rl >/dev/null || die "entropy-rl is not on the PATH; for example: source .venv/bin/activate"
if [ -z "$logs" ]; then logs="$(mktemp -d)"; fi
mkdir -p "$logs"
pids=() codes=() asked=0
forward() { # SIGNAL, to those that are left
    local i
    for i in "${!pids[@]}"; do
        if [ -z "${codes[i]:-}" ]; then kill "-$1" "${pids[i]}" 2>/dev/null || true; fi
    done
}
badness() {
    case "$1" in
        0) echo 0 ;;
        130 | 143) echo 1 ;; # stopped by SIGINT or SIGTERM
        2) echo 3 ;;
        *) echo 2 ;;
    esac
}
# shellcheck disable=SC2329
on_signal() {
    asked=1
    forward "$1"
    say "$1: passed on to every process"
}
trap 'on_signal TERM' TERM
trap '[ "$asked" = 1 ] || on_signal TERM' HUP # twice, from the shell and the kernel, as a terminal ends
trap 'on_signal INT' INT
trap 'forward TERM' EXIT

for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    # In a session of its own, so that Ctrl-C reaches it once, from here. In the background, bash
    # ignores it.
    (trap - INT && exec setsid "${COMMAND[@]}") >"$logs/process-$i.log" 2>&1 </dev/null &
    pids+=("$!")
    say "process $i: $logs/process-$i.log"
done

left=$processes deadline=0 worst=0
while ((left > 0)); do
    for i in "${!pids[@]}"; do
        if [ -n "${codes[i]:-}" ] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
        codes[i]=0
        wait "${pids[i]}" || codes[i]=$?
        left=$((left - 1))
        say "process $i ended with exit code ${codes[i]}"
        # What we ended ourselves is nobody's fault.
        if ((deadline > 0 && (codes[i] == 137 || codes[i] == 143))); then continue; fi
        bad="$(badness "${codes[i]}")"
        if ((bad > $(badness "$worst"))); then worst="${codes[i]}"; fi
        if ((left > 0 && deadline == 0 && (bad > 1 || (bad == 1 && asked == 0)))); then
            say "process $i died by itself: ending the others"
            # Who was asked to stop is saving already, and a second signal would end that.
            if [ "$asked" = 0 ]; then forward TERM; fi
            deadline=$((SECONDS + GRACE))
        fi
    done
    if ((deadline > 0 && SECONDS >= deadline && left > 0)); then
        say "still there after $GRACE s: killed"
        forward KILL
        deadline=$((SECONDS + GRACE))
    fi
    if ((left > 0)); then sleep 0.1 || true; fi
done

exit "$worst"
