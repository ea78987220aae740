#!/usr/bin/env bash
# From nothing to a real language model, trained and reported on, in 30 CPU-minutes: on 2 idle CPU
# cores about 20 minutes (docs/smollm2.md):
#   1. SmolLM2-135M-Instruct (asset:smollm2) answers a question of the arithmetic task;
#   2. GRPO with the entropy-shaped advantage, with Pass@K before and after;
#   3. the trained model answers word problems, and the entropies of its words are compared;
#   4. a page of both: runs/real_model/report.html.
# An interrupted script resumes with the same command. It needs 8 GB of memory and 5 GB of disk.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
NO_ARGUMENTS=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export PATH="$PWD/.venv/bin:$PATH"
directory="runs/real_model"

# $1: its number; $2: what it does, and the minutes that it takes on two idle cores.
stage() {
    printf '\n== %s/4  %s (%d min so far)\n' "$1" "$2" "$((SECONDS / 60))"
}

stage 1 "SmolLM2 answers a question; the first start converts its weights: about a minute"
entropy-rl sample asset:smollm2 --task.name arithmetic --problem 0 --temperature 0 \
    --max_new_tokens 56

stage 2 "GRPO with the entropy-shaped advantage, 20 steps: about 15 minutes"
entropy-rl train --config configs/real_model.yaml --run.directory "$directory/train"

stage 3 "word problems, and which words are uncertain: about 3 minutes"
entropy-rl evaluate --config configs/real_model_words.yaml \
    --model.path "$directory/train" --output "$directory/words"
entropy-rl analyze --samples "$directory/words" --output "$directory/analysis"

stage 4 "the report: seconds"
entropy-rl report "$directory/train" "$directory/words" --output "$directory/report.html"

cat <<END

done in $((SECONDS / 60)) min. Open $directory/report.html: curves, Pass@K, high-entropy words, and
responses with the entropy of every token. Next:
  source .venv/bin/activate
  entropy-rl sample $directory/train "Calculate 3 * 7 and 8 + 4." --chat true
  entropy-rl export --model $directory/train --output $directory/exported
END
