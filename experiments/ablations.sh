#!/usr/bin/env bash
# What carries a pair's knowledge to a new dataset: iMAML on ISIC-2018 + PH² with parts changed, tested on CVC-ClinicDB, on
# which no table tests, with five images and with one. Run it in the repository's root with METASEG_DATA set; runs that are
# there are skipped, and one that was interrupted goes on. The third pool is a dataset named lgg in METASEG_DATA: the slices
# of LGG brain MRI with a tumour (docs/datasets.md shows how to describe a dataset of one's own).
set -euo pipefail
root=experiments/results/small-ablations

run() { # FOLDER SETTINGS...
  [ -f "$root/$1/result.json" ] && return
  local resume=()
  [ -f "$root/$1/checkpoints/last.ckpt" ] && resume=(ckpt_path=last)
  python train.py scale=small learner=imaml 'target=[cvc]' evaluation.draws=4 evaluation.limit=60 'evaluation.curve=[]' \
    logger=csv trainer=cpu hydra.run.dir="$root/$1" "${@:2}" "${resume[@]}"
}

ablation() { # NAME SETTINGS...
  run "$1-5shot" shots=5 "${@:2}"
  run "$1-1shot" shots=1 train=false ckpt_path="$root/$1-5shot/checkpoints/best.ckpt" "${@:2}"
}

# As table 6 trains it.
trained=experiments/results/small-tuned/isic_ph2_exclusive/imaml_5shot_seed0/checkpoints/best.ckpt
for shots in 5 1; do
  run "as-it-is-${shots}shot" pair=isic_ph2 "shots=$shots" train=false "ckpt_path=$trained"
done
ablation without-own-colours pair=isic_ph2 tasks.recolour=0
ablation three-pools 'pair=[isic,ph2,lgg]' tasks.count=75
ablation all-own-colours pair=isic_ph2 tasks.recolour=1
# Half of the outer steps: with the encoder in the inner problem each takes six times as long.
ablation encoder-and-strengths pair=isic_ph2 learner.strengths.by=layer learner.inner.rates.encoder=0.1 \
  learner.inner.steps=16 trainer.max_epochs=2 starts.epochs=4
