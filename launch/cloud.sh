# shellcheck shell=bash
# Sourced by the scripts for clouds and clusters: messages, quoting, and
# running or printing commands. It creates no environment and writes no file. Exit codes are those
# of entropy-rl: 2 for bad input, 1 for other failures.
set -euo pipefail

DRY_RUN=0
TRIES="${TRIES:-5}"  # for a command that may fail temporarily
PAUSE="${PAUSE:-10}" # seconds before the second try; doubled each time, 300 at most

# A message, also to a terminal that has gone.
say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2 || true; }
# A message about something done; none in a dry run.
tell() { if [ "$DRY_RUN" = 0 ]; then say "$@"; fi; }
die() { say "$*" && exit 2; }
give_up() { say "$*" && exit 1; }

# The comment at the head of the script.
usage() { awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"; }

# take_options "$@": handles --help and --dry-run; sets REST to the other arguments.
take_options() {
    while (($# > 0)); do
        case "$1" in
            -h | --help) usage && exit 0 ;;
            --dry-run) DRY_RUN=1 && shift ;;
            *) break ;;
        esac
    done
    REST=("$@")
}

# Quotes words for a shell, where they need quotes.
quote() {
    local word line=""
    for word in "$@"; do
        if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
    done
    printf '%s\n' "${line# }"
}

# Runs a command, or prints it.
run() {
    if [ "$DRY_RUN" = 1 ]; then quote "$@"; else "$@"; fi
}

# need NAME WHAT EXAMPLE: a variable of the environment that must be set.
need() {
    [ -n "${!1:-}" ] || die "$1 is not set: $2; for example: export $1=$3"
}

# need_tools NAME...: programs that must be on the PATH.
need_tools() {
    local name
    for name in "$@"; do
        command -v "$name" >/dev/null || die "$name is not on the PATH"
    done
}

# need_numbers NAME...: variables that must be whole numbers; 08 is not an octal number.
need_numbers() {
    local name
    for name in "$@"; do
        [[ "${!name}" =~ ^[0-9]+$ ]] || die "$name must be a whole number, got ${!name}"
        printf -v "$name" %s "$((10#${!name}))"
    done
}

# pause N: the wait after the Nth failure.
pause() {
    local seconds=$((PAUSE * 2 ** ($1 > 10 ? 10 : $1 - 1)))
    sleep "$((seconds > 300 ? 300 : seconds))"
}

# retry WHAT COMMAND...: a function or command that may fail for a while, TRIES times at most.
retry() {
    local what="$1" attempt
    shift
    for ((attempt = 1; attempt <= TRIES; attempt++)); do
        if "$@"; then return 0; fi
        say "$what: try $attempt of $TRIES failed"
        if ((attempt < TRIES)); then pause "$attempt"; fi
    done
    return 1
}

# What is passed on ends in logs and manifests: a secret must not be among it.
refuse_secrets() {
    local name argument
    for name in WANDB_API_KEY HF_TOKEN; do
        for argument in "$@"; do
            if [ -n "${!name:-}" ] && [[ "$argument" == *"${!name}"* ]]; then
                die "the value of $name is in the command, which others can read; see 'Secrets' in docs/pods.md"
            fi
        done
    done
}

# Sets TRAIN to what each process runs: the command's arguments, and the run's directory
# $RUNS/$RUN_ID.
set_train() {
    (($# > 0)) || die "nothing to run; give the settings of entropy-rl train, such as --config FILE (--help explains)"
    need RUNS "where runs go, a directory that every host sees" /mnt/runs
    [[ "$RUNS" != *://* ]] || die "RUNS=$RUNS: a directory, please; mount the bucket, or give it the checkpoints: --run.checkpoints; docs/pods.md"
    [[ "$RUN_ID" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "RUN_ID=$RUN_ID: letters, digits, '.', '_' and '-' only"
    local argument
    for argument in "$@"; do
        case "$argument" in
            --run.directory | --run.directory=*) die "the run's directory is RUNS/RUN_ID; leave --run.directory out" ;;
        esac
    done
    TRAIN=(entropy-rl train "$@" --run.directory "${RUNS%/}/$RUN_ID")
    refuse_secrets "${TRAIN[@]}"
}
