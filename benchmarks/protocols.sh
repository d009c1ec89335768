#!/usr/bin/env bash
# Score S-JEPA by four protocols on four small real sets with the public commands, then collect the
# table:   benchmarks/protocols.sh DATA_FOLDER [WORK_FOLDER]
# A work folder of real_data.sh may be given: its runs of N-UCLA and MSR Action3D are used as they
# are. JOBS processes of one thread each; what is done is not done again.
set -euo pipefail
data=${1:?name the folder that holds nucla, msr_action3d, utkinect and florence3d}
work=${2:-runs/real}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p "$work"

trains() {
  local set seed more
  for set in nucla msr_action3d utkinect florence3d; do
    [ -e "$work/stores/$set" ] || $python -m sjepa_fast.prepare "$set" --raw "$data/$set" --out "$work/stores/$set" >&2
    case $set in
      nucla) more="--compile" ;;
      msr_action3d) more="--data.split xsub --data.whiten 0.5 --optim.length 600 --compile" ;;
      *) more="--data.split xsub --optim.length 300" ;;
    esac
    for seed in 0 1 2; do
      [ -e "$work/$set-s$seed/results/knn-before-after.json" ] ||
        echo "train sjepa-nucla --data.root $work/stores/$set --run $work/$set-s$seed --seed $seed --log.knn-every 0 $more"
    done
  done
}

# One line an evaluation: the result file it leaves, then the command.
evaluations() {
  local set seed run split encoder
  for set in nucla msr_action3d utkinect florence3d; do
    split=xsub
    [ $set = nucla ] && split=xview_clean
    for seed in 0 1 2; do
      run=$work/$set-s$seed
      for encoder in target random; do
        echo "knn-$encoder-full knn $run --encoder $encoder --pool full --data.split $split"
        echo "linear-$encoder-joint linear $run --encoder $encoder --pool joint --data.split $split"
      done
      echo "finetune-target finetune $run --seeds $seed --data.split $split"
      echo "semi0.1-balanced-target semi $run --ratio 0.1 --balanced --seeds $seed --data.split $split"
    done
    run=$work/$set-s0
    echo "knn-raw knn $run --encoder raw --data.split $split"
    echo "linear-raw linear $run --encoder raw --pool joint --data.split $split"
    echo "finetune-random finetune $run --encoder random --seeds 0 1 2 --data.split $split"
    echo "semi0.1-balanced-random semi $run --encoder random --ratio 0.1 --balanced --seeds 0 1 2 --data.split $split"
  done | while read -r name protocol run rest; do
    set=${run##*/} && set=${set%-s?}
    [ -e "$run/results/$name-$set-${rest##* }.json" ] || echo "evaluate $protocol $run $rest"
  done
}

trains | xargs -r -P "${JOBS:-1}" -d '\n' -I{} sh -c "$python -m sjepa_fast.{} > /dev/null"
evaluations | xargs -r -P "${JOBS:-1}" -d '\n' -I{} sh -c "$python -m sjepa_fast.{} | tail -1"
$python benchmarks/protocols_table.py "$work" benchmarks/results/cpu-2-cores
