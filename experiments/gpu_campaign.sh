#!/usr/bin/env bash
# What needs a GPU, within a time limit: the gpu tests, the benchmark at the paper's size, and the paper's network at
# 256 px for tables 2 and 6. Repeating the command continues where it stopped. Run it in the repository's root with
# METASEG_DATA set:
#   bash experiments/gpu_campaign.sh MINUTES [FOLDER]
# FOLDER (default: runs/gpu_campaign) then holds tests.log (tests.part if a test fails), benchmarks/, and the cells of each protocol.
set -uo pipefail
if [[ ! "${1:-}" =~ ^[0-9]+$ ]] || [ "$1" -eq 0 ]; then
  echo "expected the minutes this may take, found '${1:-}': bash experiments/gpu_campaign.sh MINUTES [FOLDER]" >&2
  exit 1
fi
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "expected a GPU, but torch sees none" >&2
  exit 1
}
end=$(($(date +%s) + 60 * $1))
out=${2:-runs/gpu_campaign}
mkdir -p "$out"
# Shared starts are outside the folder, and those trained again would not be the same.
[ ! -d "$out/starts" ] || { mkdir -p runs/starts && cp -rn "$out/starts/." runs/starts/; }

failed=0

finish() { # the report, of what there is, in the last half minute
  [ ! -d runs/starts ] || cp -r runs/starts "$out/"
  for protocol in tuned paper; do
    [ ! -d "$out/$protocol" ] || python -m metaseg report "$out/$protocol" || failed=1
  done
  exit "$failed"
}

stopped='' running=''
trap 'stopped=yes; [ -z "$running" ] || kill -TERM "$running"' INT # Ctrl+C ends the command as the limit does

within_limit() { # COMMAND...: ended by SIGTERM, which leaves a checkpoint, a minute before the limit
  local left=$((end - $(date +%s) - 60))
  if [ "$left" -le 0 ] || [ -n "$stopped" ]; then
    echo "the time is up, or Ctrl+C was pressed, before: $*"
    finish
  fi
  timeout --signal=TERM --kill-after=30 "$left" "$@" & # in a process group of its own, out of the terminal's reach
  running=$!
  wait "$running"
  local status=$?
  [ -z "$stopped" ] || wait "$running" # the first one ended with the signal
  running=''
  if [ "$status" -eq 124 ] || [ -n "$stopped" ]; then
    echo "the time is up, or Ctrl+C was pressed, during: $*"
    finish
  fi
  return "$status"
}

once() { # FILE COMMAND...: skipped once FILE exists
  [ -e "$1" ] || within_limit "${@:2}"
}

tests() { # tests.log is the record of a pass, tests.part that of a failure, which a repetition tries again
  [ -e "$out/tests.log" ] && return
  within_limit python -m pytest -m gpu -q >"$out/tests.part" 2>&1 # not in a pipe, where the end of the time ends the pipe alone
  local status=$?
  tail -n 20 "$out/tests.part"
  [ "$status" -ne 0 ] || mv "$out/tests.part" "$out/tests.log"
  return "$status"
}

cells() { # PROTOCOL TABLE: iMAML first, then the others, each time as many cells at once as there are GPUs
  for learners in imaml maml,joint,scratch; do
    within_limit python train.py -m "experiment=table$2" "protocol=$1" "learner=$learners" shots=5,20 seed=0 \
      trainer=gpu logger=csv evaluation.compress=true "hydra.sweep.dir=$out/$1" || failed=1
  done
}

tests || failed=1
once "$out/benchmarks/outer_step_cuda.json" python -m benchmarks outer_step --device cuda --paper --out "$out/benchmarks" || failed=1
for protocol in tuned paper; do
  for table in 2 6; do
    cells "$protocol" "$table"
  done
done
finish
