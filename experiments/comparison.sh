#!/usr/bin/env bash
# The paper's comparison at a size that two cores can do: scale=small, the systems that decide it first. Run it in the
# repository's root with METASEG_DATA set; it continues where it stopped, and
# `metaseg status experiments/results/small-tuned` shows how far it is.
# `python -m metaseg report experiments/results/small-tuned` makes the tables.
set -euo pipefail
python train.py -m experiment=table1 scale=small # the datasets
for seed in 0 1 2; do
  for shots in 5 20; do
    for table in 2 6 4 3 5; do
      for learner in scratch joint imaml maml fomaml; do
        python train.py -m "experiment=table$table" scale=small "learner=$learner" "shots=$shots" "seed=$seed" \
          trainer=cpu logger=csv
      done
    done
  done
done
for seed in 0 1 2; do
  python train.py -m experiment=table7 scale=small "seed=$seed" trainer=cpu logger=csv
done
# Joint training for as many passes of images as iMAML takes (compute.json), instead of as many outer steps.
equal() { # TABLE PASSES
  python train.py -m "experiment=table$1" scale=small learner=joint shots=5 seed=0 trainer=cpu logger=csv \
    "trainer.max_passes=$2" trainer.max_epochs=20 hydra.sweep.dir=experiments/results/small-equal-compute
}
equal 6 17000
equal 2 20200
