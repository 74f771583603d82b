#!/usr/bin/env bash
# SPCDD's toy study from nothing, on a CPU: the anatomy extractor, every ablation of the paper in three seeds, students, training with few pairs,
# and tables on heads that nobody was trained on.
#   launch/spcdd.sh OUT [PART …]
# Parts, all if none is named, each of which goes on where it was stopped and is quick where it was done:
#   heads      25 synthetic T1w heads, prepared as axial slices, 20 of them to train on; and the middles of HEADS others, degraded to 2 mm
#   anatomy    anatomy.yaml, by labels, once more of another seed to judge by, and anatomy-self.yaml, without labels
#   paper      spcdd-paper.yaml: neither, prior, intensity, both, and both with the losses of intensities; for each of SEEDS
#   small      spcdd-small.yaml, which diffuses: the same but for those losses
#   students   of both: half as wide, the slice alone in, taught by the first of each, and by themselves
#   unpaired   pairs of all, a quarter and a twentieth of the people, with a discriminator and the others' scans, and without
#   upscale    the heads by all of these, and what the other extractor sees in what they made (jaxsr segment)
#   tables     of images, and of Dice against the heads' own labels; means and deviations over seeds (docs/make_spcdd_tables.py)
#   cost       parameters, multiply-adds, time and memory of teacher and student (OUT/cost.jsonl)
# Settings: SEEDS="42 43 44", HEADS=2, STEPS=1000 of each training, PYTHON=python3; JOBS=1, how many trainings or heads' upscalings at once: two
# of them, a core each, do almost twice as much as one that has both.
set -euo pipefail
known="heads anatomy paper small students unpaired upscale tables cost"
usage() { sed -n '2,18s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || usage
out=$1
shift
read -ra seeds <<<"${SEEDS:-42 43 44}"
read -ra parts <<<"${*:-$known}"
for part in "${parts[@]}"; do [[ " $known " == *" $part "* ]] || usage; done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
configs=$root/configs heads=${HEADS:-2} steps=${STEPS:-1000}
mkdir -p "$out/runs"
python() { command "${PYTHON:-python3}" "$@"; } # also where that is called python
jaxsr() { echo "+ jaxsr $*" >&2; python -m jaxsr "$@"; }
# started COMMAND …: now, or beside JOBS − 1 others on cores of its own, as soon as the one that had them has ended; finished: all have.
number=${JOBS:-1} pids=() slots=()
cores=$(($(getconf _NPROCESSORS_ONLN) / number))
trap 'for pid in "${pids[@]}"; do kill -- "-$pid" 2>/dev/null || true; done' EXIT
started() {
  local slot=0
  if ((number == 1)); then
    "$@"
    return
  fi
  while [[ ${slots[slot]:-} ]] && kill -0 "${slots[slot]}" 2>/dev/null; do
    if ((++slot == number)); then
      wait -n
      slot=0
    fi
  done
  set -m # a process group each, which is what can be stopped
  (
    # Where there is no taskset, or other cores are this script's, they share what there is.
    ((cores == 0)) || taskset -cp "$((slot * cores))-$((slot * cores + cores - 1))" "$BASHPID" >/dev/null 2>&1 || true
    "$@"
  ) &
  slots[slot]=$! pids+=($!)
  set +m
}
finished() {
  local pid
  for pid in "${pids[@]}"; do wait "$pid"; done
  pids=() slots=()
}
# trained NAME CONFIG [KEY=VALUE …]: one run for each seed, NAME-SEED.
trained() {
  local seed
  for seed in "${seeds[@]}"; do
    started jaxsr train "$configs/$2.yaml" data.manifest="$out/set" train.steps="$steps" seed="$seed" --run-dir "$out/runs/$1-$seed" "${@:3}"
  done
}
# upscaled RUN: the heads by it, and their tissues.
upscaled() {
  local name steps=()
  name=$(basename "$1")
  if [[ $name == small-* ]]; then steps=(--steps 10); fi
  jaxsr upscale -i "$out/low" -o "$out/upscaled/$name" --model "$1" --axes axial --no-montage "${steps[@]}"
  jaxsr segment -i "$out/upscaled/$name" -o "$out/seen/$name" --model "$out/judge" --axes axial --no-montage
}
extractor=method.weights.anatomy=$out/anatomy

run() {
  case $1 in
    heads)
      jaxsr generate -o "$out/heads" -n 25 --contrast T1w
      jaxsr prepare "$out/heads" "$out/set" --layout folder --axes axial --bias off --split exact
      jaxsr generate -o "$out/others" -n "$heads" --contrast T1w --with labels --seed 1
      python "$root/docs/make_regions.py" "$out/others" "$out/middle"
      jaxsr simulate -i "$out/middle/high" -o "$out/low" --acquisition 1.5T
      ;;
    anatomy)
      started jaxsr train "$configs/anatomy.yaml" --run-dir "$out/anatomy"
      started jaxsr train "$configs/anatomy.yaml" seed=1 --run-dir "$out/judge"
      started jaxsr train "$configs/anatomy-self.yaml" --run-dir "$out/anatomy-self"
      ;;
    paper)
      trained neither ablations/spcdd-baseline
      trained prior ablations/spcdd-prior "$extractor"
      trained intensity ablations/spcdd-intensity
      trained both spcdd-paper "$extractor"
      trained losses ablations/spcdd-intensity-losses "$extractor"
      ;;
    small)
      trained small-neither spcdd-small method.prior=null method.intensity=null
      trained small-prior spcdd-small method.intensity=null "$extractor"
      trained small-intensity spcdd-small method.prior=null
      trained small-both spcdd-small "$extractor"
      ;;
    students)
      trained student spcdd-paper-student method.weights.teacher="$out/runs/both-${seeds[0]}"
      trained alone spcdd-paper method.plain.width=32 method.prior=null method.intensity=null
      trained small-student spcdd-small-student method.weights.teacher="$out/runs/small-both-${seeds[0]}"
      trained small-alone spcdd-small method.plain.width=32 method.prior=null method.intensity=null
      ;;
    unpaired)
      trained all-game ablations/spcdd-unpaired data.paired=1 train.batch_size=8 "$extractor" # without it is `both`
      for share in 0.25 0.05; do
        trained "$share" spcdd-paper data.paired="$share" "$extractor"
        trained "$share-game" ablations/spcdd-unpaired data.paired="$share" "$extractor"
      done
      ;;
    upscale)
      local path name
      for name in anatomy judge anatomy-self; do
        jaxsr segment -i "$out/middle/high" -o "$out/seen/truth-$name" --model "$out/$name" --axes axial --no-montage
        jaxsr segment -i "$out/low" -o "$out/seen/low-$name" --model "$out/$name" --axes axial --no-montage
      done
      for path in "$out"/runs/*/; do started upscaled "$path"; done
      ;;
    tables)
      local images=() labels=() path name
      for path in "$out"/upscaled/*/; do
        name=$(basename "$path")
        images+=(-i "$name=$path") labels+=(-i "$name=$out/seen/$name")
      done
      jaxsr evaluate "${images[@]}" -r "$out/middle/high" -l "$out/low" -o "$out/images" --no-montage \
        --metrics psnr,ssim,histogram_match,local_contrast_error,gradient_error
      for name in anatomy judge anatomy-self; do labels+=(-i "truth-$name=$out/seen/truth-$name"); done
      jaxsr evaluate "${labels[@]}" -r "$out/middle/labels" --labels 1,2,3 -o "$out/labels"
      python "$root/docs/make_spcdd_tables.py" "$out" >"$out/tables.md"
      ;;
    cost)
      : >"$out/cost.jsonl"
      for config in spcdd-paper spcdd-paper-student spcdd-small spcdd-small-student; do
        count=$(jaxsr bench count "$configs/$config.yaml" --json)
        time=$(jaxsr bench upscale "$configs/$config.yaml" --json)
        memory=$(jaxsr bench compile "$configs/$config.yaml" --upscale 8 --json)
        echo "{\"config\": \"$config\", \"count\": $count, \"upscale\": $time, \"compile\": $memory}" >>"$out/cost.jsonl"
      done
      ;;
  esac
  finished
}
for part in "${parts[@]}"; do run "$part"; done
