#!/usr/bin/env bash
# Pass@K of a model or a run on the paper's four sets, with as many samples as its largest K:
#   bash launch/evaluate_math.sh MODEL OUTPUT [--dotted.path VALUE ...]
# Each set gets a directory in OUTPUT. The same command resumes after an interruption. The sets are fetched once:
#   for set in aime_2024 aime_2025 amc_2023 math_500; do entropy-rl data prepare $set; done
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fi
if [ $# -lt 2 ]; then
    echo "usage: bash launch/evaluate_math.sh MODEL OUTPUT [--dotted.path VALUE ...]" >&2
    exit 2
fi
model="$1" output="$2" caller="$PWD"
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
checkout="$PWD"
cd "$caller" # paths are relative to it

sets=(aime_2024:256 aime_2025:256 amc_2023:128 math_500:16)
evaluate() { # SET:SAMPLES [SETTINGS]
    local set="${1%:*}" samples="${1#*:}"
    shift
    "$checkout/.venv/bin/entropy-rl" evaluate --config "$checkout/configs/math_evaluate.yaml" --model.path "$model" \
        --evaluation.split "$set" --evaluation.samples "$samples" --output "$output/$set" "$@"
}

# A set that is missing is named before hours are spent on those before it.
for set in "${sets[@]}"; do evaluate "$set" "$@" --print_config >/dev/null; done
for set in "${sets[@]}"; do
    echo "== ${set%:*}"
    evaluate "$set" "$@"
done
