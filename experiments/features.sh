#!/usr/bin/env bash
# What pre-trained features are worth with nothing trained on a pair. Run it in the repository's root with METASEG_DATA
# set; cells that are there are skipped, and new ones have their augmentation. `python -m experiments.features` prints the table.
set -euo pipefail
root=experiments/results/features-128px

run() { # NAME SHOTS TARGET LIMIT SETTINGS...
  local folder=$root/$1-$2shot-$3
  [ -f "$folder/result.json" ] && return
  python train.py "target=[$3]" pair=none shots="$2" data.augment=coupled evaluation.limit="$4" "${@:5}" \
    evaluation.draws=3 'evaluation.curve=[]' evaluation.compress=true logger=csv trainer=cpu hydra.run.dir="$folder"
}

cell() { # NAME SHOTS SETTINGS...: KvasirCapsule-SEG and Kvasir-SEG whole, 600 images of ISIC-2018
  run "$1" "$2" kvasir null "${@:3}"
  run "$1" "$2" isic 600 "${@:3}"
  run "$1" "$2" kvasir_capsule null "${@:3}"
}

systems() { # SHOTS
  cell default "$1" learner=scratch model=pretrained
  cell quick "$1" learner=scratch model=pretrained adapt.recipe=quick
  cell linear "$1" learner=linear model=pretrained
  cell small "$1" learner=scratch model=attention_unet model.features=8 data.size=128
}

systems 5
run default-192px 5 kvasir null learner=scratch model=pretrained data.size=192
systems 20
