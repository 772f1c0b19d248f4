#!/usr/bin/env bash
# What carries a pair's knowledge to a new dataset, and what longer training adds: iMAML on ISIC-2018 + PH² with parts
# changed, tested on CVC-ClinicDB, on which no table tests, with five images and with one. Run it in the repository's root
# with METASEG_DATA set; runs that are there are skipped, and one that was interrupted goes on. The third pool is a dataset
# named lgg in METASEG_DATA: the slices of LGG brain MRI with a tumour (docs/datasets.md shows how to describe a dataset of
# one's own).
set -euo pipefail
root=experiments/results/small-ablations

run() { # FOLDER LEARNER SETTINGS...
  [ -f "$root/$1/result.json" ] && return
  local resume=()
  [ -f "$root/$1/checkpoints/last.ckpt" ] && resume=(ckpt_path=last)
  python train.py scale=small "learner=$2" 'target=[cvc]' evaluation.draws=4 evaluation.limit=60 'evaluation.curve=[]' \
    logger=csv trainer=cpu hydra.run.dir="$root/$1" "${@:3}" "${resume[@]}"
}

ablation() { # NAME LEARNER SETTINGS...
  run "$1-5shot" "$2" shots=5 "${@:3}"
  run "$1-1shot" "$2" shots=1 train=false ckpt_path="$root/$1-5shot/checkpoints/best.ckpt" "${@:3}"
}

tested() { # NAME LEARNER RUN: a run that experiments/comparison.sh has trained for table 6
  for shots in 5 1; do
    run "$1-${shots}shot" "$2" pair=isic_ph2 "shots=$shots" train=false "ckpt_path='$3/checkpoints/best.ckpt'"
  done
}

table6=experiments/results/small-tuned/isic_ph2_exclusive
tested as-it-is imaml "$table6/imaml_5shot_seed0"
ablation without-own-colours imaml pair=isic_ph2 tasks.recolour=0
ablation three-pools imaml 'pair=[isic,ph2,lgg]' tasks.count=75
ablation all-own-colours imaml pair=isic_ph2 tasks.recolour=1
# Half of the outer steps: with the encoder in the inner problem each takes four times as long.
ablation encoder-and-strengths imaml pair=isic_ph2 learner.strengths.by=layer learner.inner.rates.encoder=0.1 \
  learner.inner.steps=16 trainer.max_epochs=2
# Longer training: four times as many outer steps; joint training for as many passes of images as iMAML takes.
ablation four-times imaml pair=isic_ph2 trainer.max_epochs=16
# A control: the same training on painted images, without any medical image.
painted=runs/ablations/painted
if [ ! -f $painted/result.json ]; then
  resume=()
  [ -f $painted/checkpoints/last.ckpt ] && resume=(ckpt_path=last)
  python train.py scale=small learner=imaml shots=5 pair=isic_ph2 data=synthetic data.size=128 'target=[cvc]' \
    evaluation.draws=1 evaluation.limit=5 'evaluation.curve=[]' logger=csv trainer=cpu hydra.run.dir=$painted "${resume[@]}"
fi
tested painted imaml $painted
tested joint joint "$table6/joint_5shot_seed0"
tested joint-equal-compute joint \
  experiments/results/small-equal-compute/isic_ph2_exclusive/joint_5shot_trainer.max_passes=17000_trainer.max_epochs=20_seed0
