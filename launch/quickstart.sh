#!/usr/bin/env bash
# From nothing to a policy trained with the entropy-shaped advantage, on a CPU, in minutes:
#   1. a few seconds of supervised fine-tuning (SFT), to show that stage;
#   2. GRPO with the entropy-shaped advantage from the SFT model that ships with the package,
#      with Pass@K before and after.
# SEED=1 bash launch/quickstart.sh takes another seed. An interrupted run resumes.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
NO_ARGUMENTS=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export PATH="$PWD/.venv/bin:$PATH"
seed="${SEED:-0}"
directory="runs/quickstart-seed$seed"

echo "== 1/2  SFT: the first 100 of 9000 steps (the finished model ships as asset:countdown)"
entropy-rl sft --config configs/countdown_sft.yaml \
    --steps 100 --optimizer.warmup_updates 50 --evaluation null \
    --gate.at_least '{}' --gate.at_most '{}' --run.directory "$directory/sft"

echo
echo "== 2/2  GRPO with the entropy-shaped advantage"
entropy-rl train --config configs/countdown_grpo_entropy.yaml \
    --seed "$seed" --run.directory "$directory/grpo_entropy"

cat <<END

next: the baseline without the entropy-shaped advantage, then both compared and on one page:
  source .venv/bin/activate
  entropy-rl train --config configs/countdown_grpo.yaml --seed $seed --run.directory $directory/grpo
  entropy-rl compare $directory/grpo $directory/grpo_entropy --output $directory/comparison
  entropy-rl report $directory/grpo $directory/grpo_entropy --config configs/countdown_analyze.yaml --output $directory/report.html
END
