#!/usr/bin/env bash
# Fills launch/gke_jobset.yaml and applies it: a run on one TPU slice of a GKE cluster. The settings are those of
# `entropy-rl train`; --dry-run prints the manifest and the command.
#
#   gke.sh [--dry-run] SETTINGS
#
#   NAME               of the JobSet, such as entropy-rl-7b
#   IMAGE              a container image with entropy_rl[tpu] in it, such as REGION-docker.pkg.dev/PROJECT/REPO/entropy_rl:TAG
#   TPU_ACCELERATOR, TPU_TOPOLOGY   labels of the node pool, such as tpu-v6e-slice and 4x4
#   HOSTS, CHIPS_PER_HOST           of the slice: 4 and 4 for a 4x4 of v6e
#   RUNS               where runs go, a directory that every pod sees: /mnt/runs
#   CLAIM              the PersistentVolumeClaim (ReadWriteMany) that is mounted at /mnt/runs
#   RUN_ID             optional: NAME if not said. The same command again resumes the run
#   MAX_RESTARTS, GRACE   optional: of the JobSet (20); seconds to save in after SIGTERM (600)
#
#   kubectl logs --follow --selector jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
#   kubectl delete jobset NAME    SIGTERM to all: they save and end; it also has to go before the run is resumed
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/cloud.sh
source "$here/cloud.sh"
take_options "$@"
set -- "${REST[@]}"
need NAME "the name of the JobSet" entropy-rl-7b
need IMAGE "a container image with entropy_rl[tpu] in it" us-docker.pkg.dev/my-project/my-repo/entropy_rl:1
need TPU_ACCELERATOR "the node pool's label cloud.google.com/gke-tpu-accelerator" tpu-v6e-slice
need TPU_TOPOLOGY "the node pool's label cloud.google.com/gke-tpu-topology" 4x4
need HOSTS "the number of hosts of the slice" 4
need CHIPS_PER_HOST "the number of chips of a host" 4
need CLAIM "the PersistentVolumeClaim (ReadWriteMany) that is mounted at /mnt/runs" runs
MAX_RESTARTS="${MAX_RESTARTS:-20}" GRACE="${GRACE:-600}" RUN_ID="${RUN_ID:-$NAME}"
set_train "$@"

# A string of JSON, which YAML reads as well. Kubernetes would expand $(NAME), and takes $$ for $.
json() {
    local text="$1"
    [[ "$text" != *[[:cntrl:]]* ]] || die "a setting has a line break or another control character in it: ${text@Q}"
    text="${text//\\/\\\\}" text="${text//\"/\\\"}" text="${text//\$/\$\$}"
    printf '"%s"' "$text"
}
COMMAND=""
for word in "${TRAIN[@]}"; do COMMAND+="${COMMAND:+, }$(json "$word")"; done
COMMAND="[$COMMAND]"

manifest="$(<"$here/gke_jobset.yaml")"
for name in NAME IMAGE TPU_ACCELERATOR TPU_TOPOLOGY HOSTS CHIPS_PER_HOST CLAIM MAX_RESTARTS GRACE; do
    [[ "${!name}" =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || die "$name=${!name}: letters, digits and . _ / : @ - only"
    manifest="${manifest//"\${$name}"/"${!name}"}"
done
manifest="${manifest//"\${COMMAND}"/"$COMMAND"}"

if [ "$DRY_RUN" = 1 ]; then printf '%s\n' "$manifest"; fi
run kubectl apply --filename=- <<<"$manifest"
