#!/usr/bin/env bash
# Dice over the number of annotated images, 1 to 50, on 200 images of each target: learners that
# experiments/comparison.sh has trained with five shots, and no pair. Run it in the repository's root with METASEG_DATA
# set; cells that are there, or whose learner is not trained yet, are skipped. Draws of one or two images differ most,
# so there are ten of them; the stored cells of two images of Kvasir-SEG have three, and stay as they are.
# `python -m metaseg report experiments/results/small-images` draws the figure. Arguments: numbers of images, else all.
# SEED=1: another training seed.
set -euo pipefail
numbers=${*:-1 2 5 10 20 50}
seed=${SEED:-0}
trained=experiments/results/small-tuned
root=experiments/results/small-images

run() { # CELL SHOTS SETTINGS...
  local folder=$root/$1_seed$seed
  [ -f "$folder/result.json" ] && return
  local draws=3
  if [ "$2" -le 2 ]; then draws=10; fi
  python train.py scale=small "shots=$2" "seed=$seed" "evaluation.draws=$draws" "${@:3}" \
    evaluation.limit=200 'evaluation.curve=[]' logger=csv trainer=cpu hydra.run.dir="$folder"
}

figure() { # PAIR TARGET
  for shots in $numbers; do
    run "alone/scratch_${shots}shot_$2" "$shots" learner=scratch pair=none "target=[$2]"
    for learner in imaml maml joint; do
      local weights=$trained/$1_exclusive/${learner}_5shot_seed$seed/checkpoints/best.ckpt
      [ -f "$weights" ] || continue
      run "$1/${learner}_${shots}shot_$2" "$shots" "learner=$learner" "pair=$1" "target=[$2]" \
        train=false "ckpt_path=$weights"
    done
  done
}

figure isic_ph2 kvasir
figure ph2_kvasir isic
