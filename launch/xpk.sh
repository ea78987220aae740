#!/usr/bin/env bash
# A run on a cluster made by XPK (github.com/AI-Hypercomputer/xpk). The settings are those of `entropy-rl train`;
# --dry-run prints the command.
#
#   xpk.sh [--dry-run] SETTINGS
#
#   NAME               of the workload, such as entropy-rl-7b
#   CLUSTER, ZONE      of the cluster; PROJECT if it is not gcloud's default
#   TPU_TYPE           such as v5litepod-16
#   IMAGE              a container image with entropy_rl[tpu] in it, such as REGION-docker.pkg.dev/PROJECT/REPO/entropy_rl:TAG
#   RUNS               where runs go, a directory that every pod sees: /mnt/runs
#   RUN_ID             optional: NAME if not said. The same command again resumes the run
#   ENV_FILE           optional: lines NAME=value, or NAME to take it from here. XPK writes the values into the
#                      workload's manifest: whoever may read the cluster's jobs can read them
#   MAX_RESTARTS, GRACE   optional: of the workload (20); seconds to save in after SIGTERM (600)
#
#   xpk workload delete --workload NAME --cluster CLUSTER --zone ZONE    SIGTERM to all: they save and end
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/cloud.sh
source "$here/cloud.sh"
take_options "$@"
set -- "${REST[@]}"
need NAME "the name of the workload" entropy-rl-7b
need CLUSTER "the XPK cluster" my-cluster
need ZONE "the cluster's zone" us-east5-b
need TPU_TYPE "the slice's type" v5litepod-16
need IMAGE "a container image with entropy_rl[tpu] in it" us-docker.pkg.dev/my-project/my-repo/entropy_rl:1
RUN_ID="${RUN_ID:-$NAME}"
set_train "$@"

# XPK runs this line in a shell of its own; with `exec` the SIGTERM it passes on reaches the program. XPK restarts on
# exit codes 42 and 127 to 255, and with this on 1: not on 2, bad input.
command=(
    xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
    "--tpu-type=$TPU_TYPE" "--docker-image=$IMAGE" ${ENV_FILE:+"--env-file=$ENV_FILE"}
    "--max-restarts=${MAX_RESTARTS:-20}" --restart-on-exit-codes=1
    "--termination-grace-period-seconds=${GRACE:-600}"
    "--command=exec env ENTROPY_RL_DISTRIBUTED=auto $(quote "${TRAIN[@]}")"
)
run "${command[@]}"
