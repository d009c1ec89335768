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

# The recipe of this table masked nine tenths; the preset's share has been tuned since.
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
        echo "sjepa-nucla --mask.ratio 0.9 --data.root $work/stores/$set --run $work/$set-s$seed --seed $seed --log.knn-every 0 $more"
    done
  done
}

# The commands whose result file is not there yet, the quick protocols first.
evaluations() {
  local protocol set seed run split encoder batch
  for protocol in frozen trained; do
    for set in nucla msr_action3d utkinect florence3d; do
      split=xsub batch="--recipe.batch-size 32"
      [ $set = nucla ] && split=xview_clean batch=
      semi="--ratio 0.1 --balanced --recipe.batch-size 32 --data.split $split"
      run=$work/$set-s0
      if [ $protocol = frozen ]; then
        echo "knn-raw knn $run --encoder raw --data.split $split"
        echo "linear-raw linear $run --encoder raw --pool joint --data.split $split"
        for seed in 0 1 2; do
          run=$work/$set-s$seed
          for encoder in target random; do
            echo "knn-$encoder-full knn $run --encoder $encoder --pool full --data.split $split"
            echo "linear-$encoder-joint linear $run --encoder $encoder --pool joint --data.split $split"
          done
        done
      else
        for seed in 0 1 2; do
          echo "finetune-target finetune $work/$set-s$seed --seeds $seed $batch --data.split $split"
          echo "semi0.1-balanced-target semi $work/$set-s$seed --seeds $seed $semi"
        done
        echo "finetune-random finetune $run --encoder random --seeds 0 1 2 $batch --data.split $split"
        echo "semi0.1-balanced-random semi $run --encoder random --seeds 0 1 2 $semi"
      fi
    done
  done | while read -r name protocol run rest; do
    set=${run##*/} && set=${set%-s?}
    [ -e "$run/results/$name-$set-${rest##* }.json" ] || echo "$protocol $run $rest"
  done
}

trains | xargs -r -P "${JOBS:-1}" -d '\n' -I{} sh -c "$python -m sjepa_fast.train {} > /dev/null"
# Many short evaluations share a process, which spares most of their time: importing torch.
evaluations | xargs -r -P "${JOBS:-1}" -d '\n' -n "${CHUNK:-20}" $python benchmarks/evaluate_many.py
$python benchmarks/protocols_table.py "$work" benchmarks/results/cpu-2-cores
