#!/usr/bin/env bash
# The student's experiments from nothing, on a CPU: an autoencoder, a teacher, what that makes of synthetic heads, students of it, and tables
# on heads that none of them has seen.
#   launch/students.sh OUT [PART …]
# Parts, all if none is named, each of which goes on where it was stopped and is quick where it was done:
#   teacher    autoencoder-small.yaml, teacher-tiny.yaml, and sr3 (demo.yaml) to stand beside them
#   data       12 heads, prepared
#   students   the cache, and a student for each N of STAGES
#   variants   the paper's blur, all stages open at once, own outputs as conditions, no Eq. 9, zero terminal SNR, one step a stage
#   tables     students.yaml: teacher, students of every N, of the most stages but one with the paper's blur too, sr3 and interpolations
#   choices    students.yaml: the variants, of the fewest stages; and in ten sampling steps a stage the one that one-step is of
#   scales     scales-1.5T-3T.yaml and scales-3T-7T.yaml with both blurs
#   path       where the stages of each student lead (docs/make_path_figure.py)
#   cost       parameters, multiply-adds, memory and time of each (OUT/cost.jsonl)
# Settings: STAGES="5 10 20 50" (two numbers or more, rising), HEADS=2 test heads a table, PYTHON=python3.
set -euo pipefail
known="teacher data students variants tables choices scales path cost"
usage() { sed -n '2,17s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || usage
out=$1
shift
read -ra stages <<<"${STAGES:-5 10 20 50}"
read -ra parts <<<"${*:-$known}"
for part in "${parts[@]}"; do [[ " $known " == *" $part "* ]] || usage; done
((${#stages[@]} > 1)) || usage
few=${stages[0]} many=${stages[-2]} # stages of the variants, and of the student that goes from scale to scale
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
configs=$root/configs heads=${HEADS:-2}
mkdir -p "$out"
jaxsr() { echo "+ jaxsr $*" >&2; "${PYTHON:-python3}" -m jaxsr "$@"; }
# student NAME N [KEY=VALUE …]: trains one.
student() { jaxsr train "$configs/student-tiny.yaml" data.manifest="$out/cache" --run-dir "$out/$1" method.stages.count="$2" "${@:3}"; }
# table NAME PROTOCOL STEPS NAME=RUN …: a protocol with as many heads and sampling steps as are wanted, of models by their places in OUT.
table() {
  local name=$1 protocol=$configs/ablations/$2.yaml steps=$3 models=()
  for model in "${@:4}"; do models+=(--models "${model%%=*}=$out/${model##*=}"); done
  grep -q "count: 9" "$protocol"
  { sed "s/count: 9/count: $heads/" "$protocol" && echo "steps: $steps"; } >"$out/$name.yaml"
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
      for n in "${stages[@]}"; do student "student-$n" "$n"; done
      ;;
    variants)
      student student-paper "$few" method.stages.blur=paper
      student student-uniform "$few" method.curriculum=uniform
      student student-rollout "$few" method.rollout=0.5 method.rollout_steps=1
      student student-plain "$few" method.lambda_distill=0
      student student-zero "$few" method.schedule.zero_terminal_snr=true
      jaxsr train "$configs/consistency-tiny.yaml" method.weights.student="$out/student-$few" method.stages.count="$few" \
        data.manifest="$out/cache" --run-dir "$out/one-step"
      student "student-$many-paper" "$many" method.stages.blur=paper
      ;;
    tables)
      local models=()
      for n in "${stages[@]}"; do models+=("N$n=student-$n"); done
      table students students null teacher=teacher sr3=sr3 "${models[@]}" "paper$many=student-$many-paper"
      ;;
    choices)
      table choices students null "N$few=student-$few" paper=student-paper uniform=student-uniform rollout=student-rollout \
        plain=student-plain zero=student-zero one-step=one-step
      table choices-10-steps students 10 "N$few=student-$few"
      ;;
    scales)
      for scale in scales-1.5T-3T scales-3T-7T; do
        table $scale $scale null "matched=student-$many" "paper=student-$many-paper" sr3=sr3 teacher=teacher
      done
      ;;
    path) "${PYTHON:-python3}" "$root/docs/make_path_figure.py" "$out/path.png" "$out/students" "${stages[@]/#/$out/student-}" ;;
    cost)
      for model in teacher sr3 "${stages[@]/#/student-}" one-step; do
        for bench in "count --size 256" "compile --upscale 1 --size 256" "upscale --shape 96,96,96"; do
          read -ra words <<<"$bench"
          answer=$(jaxsr bench "${words[0]}" "$out/$model/config.yaml" "${words[@]:1}" --json | tr -d '\n')
          echo "{\"model\": \"$model\", \"bench\": \"${words[0]}\", \"answer\": $answer}"
        done
      done >"$out/cost.jsonl.part"
      mv "$out/cost.jsonl.part" "$out/cost.jsonl"
      "${PYTHON:-python3}" - "$out/cost.jsonl" <<'TABLE'
import json, sys
models = {}
for line in map(json.loads, open(sys.argv[1])):
    models.setdefault(line["model"], {})[line["bench"]] = line["answer"]
print("| model | parameters | multiply-adds of each network once, 256² | memory of a slice of 256², MiB | volume of 96³: seconds | multiply-adds, T |")
print("| --- " * 6 + "|")
for name, of in models.items():
    count, memory, volume = of["count"], of["compile"]["device_bytes"] / 2**20, of["upscale"]
    print(f"| {name} | {count['parameters']:,} | {count['multiply_adds'] / 1e9:.3g} G | {memory:.1f} | {volume['seconds_per_volume']:.1f} | {volume['multiply_adds'] / 1e12:.3g} |")
TABLE
      ;;
  esac
}
for part in "${parts[@]}"; do run "$part"; done
