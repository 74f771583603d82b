#!/usr/bin/env bash
# The student's experiments from nothing, on a CPU: an autoencoder, a teacher, what that makes of synthetic heads, students of it, and tables
# on heads that none of them has seen.
#   launch/students.sh OUT [PART …]
# Parts, all if none is named, each of which goes on where it was stopped and is quick where it was done:
#   teacher    autoencoder-small.yaml, teacher-tiny.yaml, and sr3 (demo.yaml) to stand beside them
#   data       12 heads, prepared
#   students   the cache, and a student for each N of STAGES
#   variants   the paper's blur, all stages open at once, own outputs as conditions, no Eq. 9, zero terminal SNR, one step a stage
#   tables     students.yaml: teacher, students of every N, sr3 and interpolations
#   choices    students.yaml: the variants
#   scales     scales-1.5T-3T.yaml and scales-3T-7T.yaml with the student of N = 20
#   path       where the stages of each student lead (docs/make_path_figure.py)
# Settings: STAGES="5 10 20 50", HEADS=2 test heads a table, PYTHON=python3.
set -euo pipefail
[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,15s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
out=$1
shift
parts=("$@")
((${#parts[@]})) || parts=(teacher data students variants tables choices scales path)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
configs=$root/configs stages=${STAGES:-5 10 20 50} heads=${HEADS:-2}
mkdir -p "$out"
jaxsr() { echo "+ jaxsr $*" >&2; "${PYTHON:-python3}" -m jaxsr "$@"; }
student() { jaxsr train "$configs/student-tiny.yaml" data.manifest="$out/cache" --run-dir "$out/$1" "${@:2}"; }
# A protocol with as many heads as are wanted, of models by their names in OUT.
table() {
  local name=$1 models=()
  for model in "${@:3}"; do models+=(--models "${model%%=*}=$out/${model##*=}"); done
  sed "s/count: 9/count: $heads/" "$configs/ablations/$2.yaml" >"$out/$name.yaml"
  jaxsr evaluate --protocol "$out/$name.yaml" "${models[@]}" -o "$out/$name"
}

run() {
  case $1 in
    teacher)
      jaxsr train "$configs/autoencoder-small.yaml" --run-dir "$out/autoencoder"
      jaxsr train "$configs/teacher-tiny.yaml" method.weights.autoencoder="$out/autoencoder" --run-dir "$out/teacher"
      jaxsr train "$configs/demo.yaml" --run-dir "$out/sr3"
      ;;
    data)
      jaxsr generate -o "$out/heads" -n 12 --contrast T1w
      jaxsr prepare "$out/heads" "$out/set" --layout folder --bias off --least-tissue 0.2 --split exact
      ;;
    students)
      jaxsr distill "$configs/student-tiny.yaml" --teacher "$out/teacher" --set "$out/set" --cache "$out/cache" --only-cache \
        --flat bias,gradient --steps 4 --copies 2
      for n in $stages; do student "student-$n" method.stages.count="$n"; done
      ;;
    variants)
      student student-paper method.stages.blur=paper
      student student-uniform method.curriculum=uniform
      student student-rollout method.rollout=0.5 method.rollout_steps=1
      student student-plain method.lambda_distill=0
      student student-zero method.schedule.zero_terminal_snr=true
      jaxsr train "$configs/consistency-tiny.yaml" method.weights.student="$out/student-5" data.manifest="$out/cache" --run-dir "$out/one-step"
      ;;
    tables) table students students teacher=teacher sr3=sr3 $(for n in $stages; do echo "N$n=student-$n"; done) ;;
    choices)
      table choices students N5=student-5 paper=student-paper uniform=student-uniform rollout=student-rollout plain=student-plain \
        zero=student-zero one-step=one-step
      ;;
    scales)
      table scales-1.5T-3T scales-1.5T-3T student=student-20 sr3=sr3 teacher=teacher
      table scales-3T-7T scales-3T-7T student=student-20 sr3=sr3 teacher=teacher
      ;;
    path)
      "${PYTHON:-python3}" "$root/docs/make_path_figure.py" "$out/path.png" "$out/students" $(for n in $stages; do echo "$out/student-$n"; done)
      ;;
    *)
      echo "no part '$1'" >&2
      return 2
      ;;
  esac
}
for part in "${parts[@]}"; do run "$part"; done
