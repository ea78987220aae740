#!/usr/bin/env bash
# Train on a TPU slice of Google Cloud, controlled from this machine:
#
#   tpu_pod.sh create [--spot] [GCLOUD FLAGS]   requests the slice and waits until it is ready
#   tpu_pod.sh setup                            installs this checkout's commit and its environment on every worker
#   tpu_pod.sh run [--new] [SETTINGS]           trains and monitors: restarts the run if it dies or the slice is preempted
#   tpu_pod.sh status                           shows the state of the slice and of the process on each worker
#   tpu_pod.sh logs [--worker N]                follows the output of a worker, by default 0
#   tpu_pod.sh stop                             sends SIGTERM to all: they save and exit; `run` resumes
#   tpu_pod.sh delete                           deletes the slice
#
# --dry-run after the verb prints the commands without running them. SETTINGS are those of `entropy-rl train`. A run's id
# and commit are fixed when it starts: `run` without settings resumes it, and `run --new SETTINGS` starts another.
# Ctrl-C stops the monitoring only. See docs/pods.md.
#
#   TPU_NAME, ZONE          of the slice: my-pod, us-central2-b
#   PROJECT                 if it is not gcloud's default
#   ACCELERATOR_TYPE, RUNTIME_VERSION   for create: v4-32, tpu-ubuntu2204-base
#   RUNS                    for run: parent directory of runs, visible to every worker: /mnt/runs; with
#                           --run.checkpoints gs://BUCKET/NAME in SETTINGS, for everything but the checkpoints
#   MOUNT                   for setup, optional: shell command that mounts it, on each worker before each start
#   PREPARE                 for setup, optional: shell command that each worker runs once, to fetch data and models
#   ENV_FILE                for setup, optional: a file of NAME=value lines for PREPARE and the run, including secrets
#   RUN_ID                  for run, optional: by default TPU_NAME and the time
#   POLL, PATIENCE          seconds between checks (30), and to wait for a slice (86400)
#   TRIES, PAUSE            for a command that fails (5), and seconds before the second one (10, then doubled)
#   MAX_RESTARTS, GRACE     of a run that dies (20); seconds to save, after stop, before SIGKILL (900)
#
# What a restart needs is kept in ~/.local/state/entropy_rl/ZONE/TPU_NAME, without secrets.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
root="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/cloud.sh
source "$root/launch/cloud.sh"

POLL="${POLL:-30}" PATIENCE="${PATIENCE:-86400}" MAX_RESTARTS="${MAX_RESTARTS:-20}" GRACE="${GRACE:-900}"
need_numbers PATIENCE TRIES PAUSE MAX_RESTARTS GRACE
[[ "$POLL" =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "POLL must be a number of seconds, got $POLL"
verb="${1:---help}"
case "$verb" in
    create | setup | run | status | logs | stop | delete) shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown verb $verb; create, setup, run, status, logs, stop or delete" ;;
esac
SPOT=0 new=0 worker=0
while (($# > 0)); do
    case "$verb:$1" in
        *:--dry-run) DRY_RUN=1 ;;
        *:-h | *:--help) usage && exit 0 ;;
        create:--spot) SPOT=1 ;;
        run:--new) new=1 ;;
        logs:--worker)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || die "--worker takes the number of a worker"
            worker="$2" && shift
            ;;
        create:* | run:*) break ;;
        *) die "$verb: unexpected $1" ;;
    esac
    shift
done

need TPU_NAME "the name of the slice" my-pod
need ZONE "the slice's zone" us-central2-b
for name in TPU_NAME ZONE; do
    [[ "${!name}" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "$name=${!name}: small letters, digits and '-' only"
done
if [ "$DRY_RUN" = 0 ]; then need_tools gcloud git flock; fi
state="${XDG_STATE_HOME:-$HOME/.local/state}/entropy_rl/$ZONE/$TPU_NAME"

make_state() { (umask 077 && mkdir -p "$state"); }
# remember FILE NAME...: variables and arrays, for `recall FILE`.
remember() {
    if [ "$DRY_RUN" = 1 ]; then return; fi
    local file="$1" name value
    shift
    make_state
    for name in "$@"; do
        local -n values="$name"
        printf '%s=(' "$name"
        for value in "${values[@]}"; do printf ' %q' "$value"; done
        printf ' )\n'
    done >"$state/$file.new"
    mv "$state/$file.new" "$state/$file"
}
recall() {
    # shellcheck disable=SC1090
    if [ -e "$state/$1" ]; then source "$state/$1"; fi
}
mark_stopped() {
    if [ "$DRY_RUN" = 0 ]; then make_state && touch "$state/stopped"; fi
}

tpu() { run gcloud compute tpus "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} --quiet; }
# on WORKERS COMMAND: a shell command on workers, such as all or 0.
on() { tpu tpu-vm ssh "$TPU_NAME" "--worker=$1" "--command=$2"; }
# worker_script VERB...: the shell command that runs tpu_worker.sh of the run's commit.
worker_script() { quote bash "entropy_rl/$COMMIT/launch/tpu_worker.sh" "$@"; }

# Sets SLICE to the state of the queued resource; NONE if there is none.
describe() {
    local errors code=0
    if [ "$DRY_RUN" = 1 ]; then
        tpu queued-resources describe "$TPU_NAME" "--format=value(state.state)"
        SLICE="$PRETEND" PRETEND=ACTIVE
        return
    fi
    errors="$(mktemp)" || exit 1
    SLICE="$(tpu queued-resources describe "$TPU_NAME" "--format=value(state.state)" 2>"$errors")" || code=$?
    if [ "$code" != 0 ] && grep -q NOT_FOUND "$errors"; then
        SLICE=NONE code=0
    elif [ "$code" != 0 ]; then
        cat "$errors" >&2
    fi
    rm -f "$errors"
    return "$code"
}
look() { retry "the state of $TPU_NAME" describe || give_up "cannot see $TPU_NAME; a run on it continues"; }

# Returns when the slice is ready. Requests it after `create`, and again after a preemption; a slice
# that somebody else deleted stays deleted.
ensure_slice() {
    local asked=0 since=$SECONDS last=""
    while look && [ "$SLICE" != ACTIVE ]; do
        if [ "$SLICE" != "$last" ]; then tell "$TPU_NAME: $SLICE"; fi
        last="$SLICE"
        leave_if_stopped
        case "$SLICE" in
            NONE)
                [ "$replace" = 1 ] || give_up "there is no $TPU_NAME; \`create\` asks for it"
                if ((++asked > TRIES)); then give_up "$TPU_NAME was lost $TRIES times before it was there"; fi
                if ((asked > 1)); then pause "$((asked - 1))"; fi
                need ACCELERATOR_TYPE "the slice's type" v4-32
                need RUNTIME_VERSION "the slice's software" tpu-ubuntu2204-base
                local command=(
                    tpu queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME"
                    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION"
                )
                if [ "$SPOT" = 1 ]; then command+=(--spot); fi
                retry "asking for $TPU_NAME" "${command[@]}" "${CREATE_FLAGS[@]}" || give_up "$TPU_NAME was refused"
                replace=0
                ;;
            FAILED | SUSPENDED)
                retry "removing $TPU_NAME" tpu queued-resources delete "$TPU_NAME" --force ||
                    give_up "$TPU_NAME is $SLICE and cannot be removed"
                replace=1
                ;;
            *) # being created or deleted
                if ((SECONDS - since >= PATIENCE)); then
                    give_up "$TPU_NAME is still $SLICE; it stays in the queue; repeat the command to keep waiting"
                fi
                sleep "$POLL"
                ;;
        esac
    done
}
leave_if_stopped() {
    if [ "$verb" = run ] && [ -e "$state/stopped" ] && [ "$DRY_RUN" = 0 ]; then
        say "stopped by another command; \`run\` resumes" && exit 143
    fi
}

take_commit() {
    COMMIT="$(git -C "$root" rev-parse HEAD)"
    if [ -n "$(git -C "$root" status --porcelain)" ]; then say "what is not committed stays here"; fi
}

# Installs the commit and its environment on every worker, unless they are there already.
deploy() {
    local archive="$state/commit.tar.gz" there="entropy_rl/$COMMIT"
    run git -C "$root" archive --format=tar.gz "--output=$archive" "$COMMIT" || return
    tpu tpu-vm scp "$archive" "$TPU_NAME:" --worker=all || return
    if [ -n "$ENV_FILE" ]; then
        tpu tpu-vm scp --scp-flag=-p "$ENV_FILE" "$TPU_NAME:.entropy_rl.env" --worker=all || return
    fi
    on all "mkdir -p $there && tar -xzf commit.tar.gz -C $there && $(worker_script install "$PREPARE" "$MOUNT")"
}

# Sets RUN_STATE to the combined state of the workers (absent, running, done, refused or broken), and
# TOLD to their lines.
ask_workers() {
    local script="entropy_rl/$COMMIT/launch/tpu_worker.sh"
    local ask="else echo entropy_rl-worker: new absent; fi"
    ask="if [ -e $script ]; then $(worker_script status "$RUN_ID"); $ask"
    if [ "$DRY_RUN" = 1 ]; then on all "$ask" && RUN_STATE=absent && return; fi
    TOLD="$(on all "$ask" | sed -n 's/^entropy_rl-worker: //p')" || return
    [ -n "$TOLD" ] || return
    RUN_STATE="$(awk '
        { hosts++; n[$2 == "exited" && $3 != 0 ? ($3 == 2 ? "refused" : "failed") : $2]++ }
        END {
            if (n["refused"]) print "refused"
            else if (n["exited"] == hosts) print "done"
            else if (n["absent"] == hosts) print "absent"
            else if (n["running"] + n["exited"] == hosts) print "running"
            else print "broken"
        }' <<<"$TOLD")"
}

# Restarts the run until it is done, it is stopped, or MAX_RESTARTS is exceeded.
supervise() {
    local starts=0 unheard=0 first=1
    while :; do
        ensure_slice
        leave_if_stopped
        if ! ask_workers; then
            if ((++unheard > 4 * TRIES)); then give_up "the workers do not answer; the same command watches again"; fi
            # A preempted node may still be listed as an active resource.
            case "$(tpu tpu-vm describe "$TPU_NAME" "--format=value(state)" || true)" in
                PREEMPTED | TERMINATED) tpu queued-resources delete "$TPU_NAME" --force && replace=1 ;;
                *) pause "$unheard" ;;
            esac
            continue
        fi
        unheard=0
        # A failure from before this command does not count: `run` is meant to resume it.
        if [ "$first" = 1 ] && [[ "$RUN_STATE" =~ ^(refused|broken)$ ]] && [[ "$TOLD" != *running* ]]; then
            RUN_STATE=absent
        fi
        first=0
        case "$RUN_STATE" in
            running) sleep "$POLL" && continue ;;
            done) tell "$RUN_ID is done: ${RUNS%/}/$RUN_ID" && return ;;
            refused)
                on all "$(worker_script clear "$RUN_ID" 60)" || true
                die "$RUN_ID was refused as bad input; \`logs\` says why"
                ;;
            broken) say "$RUN_ID died: ${TOLD//$'\n'/; }" ;;
        esac
        if ((++starts > MAX_RESTARTS + 1)); then give_up "restarted $MAX_RESTARTS times, not again; see \`logs\`"; fi
        if ((starts > 1)); then
            say "restart $((starts - 1)) of $MAX_RESTARTS"
            pause "$((starts - 1))"
        fi
        # The other workers may be saving, or hang in a collective operation.
        if [ "$RUN_STATE" = broken ]; then on all "$(worker_script clear "$RUN_ID" 120)" || true; fi
        leave_if_stopped
        if deploy && leave_if_stopped && on all "$(worker_script start "$RUN_ID" "${TRAIN[@]}")"; then
            if [ "$DRY_RUN" = 1 ]; then return; fi
            say "$RUN_ID runs on $TPU_NAME; looking at it every $POLL s"
        fi
    done
}

SPOT_ASKED="$SPOT" SPOT=0 CREATE_FLAGS=() replace=0 PRETEND=ACTIVE COMMIT="" TOLD=""
PREPARE="${PREPARE:-}" MOUNT="${MOUNT:-}" ENV_FILE="${ENV_FILE:-}"
case "$verb" in
    create)
        need ACCELERATOR_TYPE "the slice's type" v4-32
        need RUNTIME_VERSION "the slice's software" tpu-ubuntu2204-base
        SPOT="$SPOT_ASKED" CREATE_FLAGS=("$@") PRETEND=NONE replace=1
        remember slice ACCELERATOR_TYPE RUNTIME_VERSION SPOT CREATE_FLAGS
        ensure_slice
        tell "$TPU_NAME is there; next: setup"
        ;;
    setup)
        take_commit
        if [ -n "$ENV_FILE" ]; then
            [ -r "$ENV_FILE" ] || die "ENV_FILE=$ENV_FILE cannot be read"
            ENV_FILE="$(realpath "$ENV_FILE")"
        fi
        refuse_secrets "$PREPARE" "$MOUNT"
        remember setup PREPARE MOUNT ENV_FILE
        retry "setting up $TPU_NAME" deploy || give_up "$TPU_NAME is not set up; repeat the command to continue"
        tell "$TPU_NAME has ${COMMIT:0:12}; next: run"
        ;;
    run)
        recall slice
        recall setup
        given=("$@") given_id="${RUN_ID:-}" given_runs="${RUNS:-}" ARGUMENTS=()
        if [ "$DRY_RUN" = 0 ]; then
            make_state
            exec 9>>"$state/lock"
            locked=0
            flock --nonblock 9 || locked=$? # not 1 on a file system without locks, which it reports
            [ "$locked" != 1 ] || die "another \`run\` watches $TPU_NAME already"
        fi
        if [ -e "$state/run" ]; then
            recall run
            if [ "$new" = 1 ] && [ "$DRY_RUN" = 0 ] && ask_workers && [[ "$TOLD" == *running* ]]; then
                die "$RUN_ID still runs on $TPU_NAME; \`stop\` it first"
            fi
        fi
        if [ "$new" = 0 ] && [ -e "$state/run" ]; then
            if ((${#given[@]} > 0)) && [ "$(quote "${given[@]}")" != "$(quote "${ARGUMENTS[@]}")" ] ||
                [ "${given_id:-$RUN_ID}" != "$RUN_ID" ] || [ "${given_runs:-$RUNS}" != "$RUNS" ]; then
                die "$TPU_NAME has the run $RUN_ID with other settings; \`run\` alone resumes it, \`run --new\` starts another"
            fi
            say "resuming $RUN_ID at commit ${COMMIT:0:12}"
            set_train "${ARGUMENTS[@]}"
        else
            take_commit
            RUNS="$given_runs" RUN_ID="${given_id:-$TPU_NAME-$(date -u +%Y%m%d-%H%M%S)}"
            ARGUMENTS=("${given[@]}")
            set_train "${ARGUMENTS[@]}"
            remember run RUN_ID COMMIT RUNS ARGUMENTS
            say "run $RUN_ID at commit ${COMMIT:0:12}"
        fi
        if [ "$DRY_RUN" = 0 ]; then rm -f "$state/stopped"; fi
        supervise
        ;;
    status | logs | stop)
        [ -e "$state/run" ] || die "no run was started on $TPU_NAME from this machine"
        recall run
        case "$verb" in
            status)
                say "run $RUN_ID at commit ${COMMIT:0:12}, ${RUNS%/}/$RUN_ID"
                tpu queued-resources describe "$TPU_NAME" "--format=value(state.state)"
                on all "$(worker_script status "$RUN_ID")"
                ;;
            logs) on "$worker" "$(worker_script log "$RUN_ID")" ;;
            stop)
                mark_stopped
                on all "$(worker_script stop "$RUN_ID" "$GRACE")"
                ;;
        esac
        ;;
    delete)
        mark_stopped
        retry "deleting $TPU_NAME" tpu queued-resources delete "$TPU_NAME" --force || give_up "$TPU_NAME may still be there"
        ;;
esac
