#!/usr/bin/env bash
# Pre-train all four objectives on N-UCLA and MSR Action3D with their presets, score each by the
# public commands and collect the table:   benchmarks/objectives.sh DATA_FOLDER [WORK_FOLDER]
# JOBS processes of one thread each; SEEDS lists the seeds; what is done is not done again, so that
# seeds can be added to a work folder.
set -euo pipefail
data=${1:?name the folder that holds nucla and msr_action3d}
work=${2:-runs/objectives}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
[ -e "$work" ] && whole= || whole=yes
mkdir -p "$work"

runs() {
  local set seed method
  for set in nucla msr_action3d; do
    for seed in ${SEEDS:-0}; do
      for method in sjepa skeleton2vec mamp skeletonmae; do
        echo "$method-$set $seed"
      done
    done
  done
}

train() {
  local run=$work/$1-s$2 set=${1#*-}
  [ -e "$run/results/knn-before-after.json" ] ||
    $python -m sjepa_fast.train "$1" --data.root "$work/stores/$set" --run "$run" --seed "$2" \
      --resume auto --log.knn-every 0 --compile > /dev/null
}

# The commands whose result file is not there yet.
evaluations() {
  runs | while read -r name seed; do
    run=$work/$name-s$seed
    echo "knn-target-full knn $run --encoder target --pool full"
    echo "linear-target-joint linear $run --encoder target --pool joint"
    echo "linear-target-mean linear $run --encoder target --pool mean"
    echo "finetune-target finetune $run --seeds $seed --recipe.batch-size 32"
    # Without pre-training the method does not matter; S-JEPA's run stands for its data and sizes.
    if [ "${name%%-*}" = sjepa ]; then
      echo "knn-random-full knn $run --encoder random --pool full"
      echo "linear-random-joint linear $run --encoder random --pool joint"
      echo "linear-random-mean linear $run --encoder random --pool mean"
      echo "finetune-random finetune $run --encoder random --seeds $seed --recipe.batch-size 32"
      echo "knn-raw knn $run --encoder raw"
      echo "linear-raw linear $run --encoder raw --pool joint"
    fi
  done | while read -r file protocol run rest; do
    [ -n "$(compgen -G "$run/results/$file-*.json")" ] || echo "$protocol $run $rest"
  done
}

for set in nucla msr_action3d; do
  [ -e "$work/stores/$set" ] ||
    $python -m sjepa_fast.prepare "$set" --raw "$data/$set" --out "$work/stores/$set" >&2
done
export -f train
export work python
runs | xargs -r -P "${JOBS:-2}" -d '\n' -I{} bash -c 'train {}'
# Many short evaluations share a process, which spares most of their time: importing torch.
evaluations | xargs -r -P "${JOBS:-2}" -d '\n' -n "${CHUNK:-6}" $python benchmarks/evaluate_many.py
[ -z "$whole" ] || echo "$SECONDS ${JOBS:-2} ${SEEDS:-0}" > "$work/clock"
$python -m benchmarks.objectives_table "$work" benchmarks/results/cpu-2-cores
