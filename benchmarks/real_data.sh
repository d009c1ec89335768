#!/usr/bin/env bash
# Pre-train and score S-JEPA on three small real sets with the public commands, two processes of
# one thread each, then collect the table:   benchmarks/real_data.sh DATA_FOLDER [WORK_FOLDER]
set -euo pipefail
data=${1:?name the folder that holds nucla, msr_action3d and sbu_interaction}
work=${2:-runs/real}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p "$work"

prepare() { [ -e "$work/stores/$1" ] || $python -m sjepa_fast.prepare "$1" --raw "$data/$2" --out "$work/stores/$1"; }
prepare nucla nucla
prepare msr_action3d msr_action3d
prepare sbu sbu_interaction

# The recipe of these tables masked nine tenths; the preset's share has been tuned since.
recipe="sjepa-nucla --mask.ratio 0.9"
trains() {
  for seed in 0 1 2; do
    echo "$recipe --data.root $work/stores/nucla --run $work/nucla-s$seed --seed $seed --compile"
  done
  for seed in 0 1 2; do
    echo "$recipe --data.root $work/stores/msr_action3d --data.split xsub --data.whiten 0.5 --optim.length 600" \
      "--run $work/msr_action3d-s$seed --seed $seed --compile"
  done
  for seed in 0 1; do
    for fold in 0 1 2 3 4; do
      echo "$recipe --data.root $work/stores/sbu --data.split fold$fold --data.bodies 2 --optim.length 300" \
        "--run $work/sbu-f$fold-s$seed --seed $seed --compile"
    done
  done
}

evaluations() {
  local run splits split encoder
  for run in "$work"/nucla-s? "$work"/msr_action3d-s? "$work"/sbu-f?-s?; do
    case $run in
      */nucla-*) splits="xview xview_clean" ;;
      */msr*) splits="xsub" ;;
      */sbu-f*) split=${run##*/sbu-f} && splits="fold${split%%-*}" ;;
    esac
    for split in $splits; do
      for encoder in target random; do
        echo "knn $run --data.split $split --encoder $encoder --pool full"
        echo "linear $run --data.split $split --encoder $encoder --pool joint"
        echo "linear $run --data.split $split --encoder $encoder --pool mean"
      done
      case $run in *-s0)
        echo "knn $run --data.split $split --encoder raw"
        echo "linear $run --data.split $split --encoder raw" ;;
      esac
    done
  done
}

trains | while read -r line; do
  [ -e "$(expr "$line" : '.*--run \([^ ]*\)')/results/knn-before-after.json" ] || echo "$line"
done | xargs -P 2 -d '\n' -I{} sh -c "$python -m sjepa_fast.train {} > /dev/null"
evaluations | while read -r protocol run _ split _ encoder _ pool; do
  done=$(find "$run/results" -name "$protocol-$encoder-${pool:-*}-*-$split.json")
  [ -n "$done" ] || echo "$protocol $run --data.split $split --encoder $encoder ${pool:+--pool $pool}"
done | xargs -P 2 -d '\n' -I{} sh -c "$python -m sjepa_fast.evaluate {}"
$python benchmarks/real_data_table.py "$work" benchmarks/results/cpu-2-cores
