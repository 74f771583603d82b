#!/usr/bin/env bash
# What only a CUDA machine can tell, in under 8 minutes:
#   launch/gpu_check.sh OUT [tests] [targets] [peers] [sr3] [teacher] [student] [mixture] [spcdd]
# Runs the GPU tests, the doctor and the benchmarks at the small and the real size, of all or of the parts that are named: targets are what
# BENCHMARKS.md sets out to reach, peers the same work by PyTorch, where torch and diffusers are there. OUT gets
# results.jsonl (one benchmark a line), table.md (ready for BENCHMARKS.md), doctor.json and log.txt. A step that fails, outlasts its time or
# has none left is named at the end and does not stop the others. Needs no installation: from a checkout, with the dependencies importable.
# PYTHON names the interpreter (default python3); CHECK_SECONDS is what all may take together (default 470).
set -uo pipefail
usage() { sed -n '2,8s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || usage
for part in "${@:2}"; do [[ $part =~ ^(tests|targets|peers|sr3|teacher|student|mixture|spcdd)$ ]] || usage; done
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
parts=" ${*:2} "
[[ $# -gt 1 ]] || parts=" tests targets peers sr3 teacher student mixture spcdd "
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source launch/environment.sh

python=${PYTHON:-python3}
box=${CHECK_SECONDS:-470}
small=configs/demo.yaml
real=configs/sr3.yaml
teacher=configs/teacher.yaml
teacher_small=configs/teacher-small.yaml
student=configs/student.yaml
mixture=configs/moediff.yaml
spcdd=configs/spcdd.yaml
latents=(method.lambda_rec=0.0 train.batch_size=64 --encoded --steps 10 --warmup 2)
whole=(--shape "260,310,260" --batch-size 64)
histograms="method.losses={denoising: 1, reconstruction: 0, histogram: 1, gradient: 1}"
log=$out/log.txt results=$out/results.jsonl
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
: >"$log"
: >"$results"
failed=()

# step NAME SECONDS ARGUMENTS…: runs python with the arguments, in what is left of the time for all where that is less; its standard output
# goes to $answer, and with everything else to the log.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0 left=$((box - SECONDS))
  shift 2
  if ((left < 5)); then
    failed+=("$name: left out, as $box s are over")
    return 1
  fi
  ((limit <= left)) || limit=$left
  printf '\n== %s: python %s\n' "$name" "$*" | tee -a "$log"
  timeout --kill-after=5 "$limit" "$python" "$@" >"$answer" 2>>"$log" || status=$?
  cat "$answer" >>"$log"
  case $status in
    0) echo "-- ok ($((SECONDS - start)) s)" && return ;;
    124 | 137) failed+=("$name: not done after $limit s") ;;
    *) failed+=("$name: status $status") && tail -n 20 "$log" ;;
  esac
  echo "-- FAILED ($((SECONDS - start)) s)"
  return 1
}

# benchmark NAME SECONDS ARGUMENTS…: a step whose answer, JSON, becomes a line of the results.
benchmark() {
  local name=$1
  step "$1" "$2" -m jaxsr bench "${@:3}" --json || return
  "$python" -c '
import json, sys
answer, name, command = open(sys.argv[1]).read(), sys.argv[2], " ".join(sys.argv[3:])
print(json.dumps({"benchmark": name, "command": f"jaxsr bench {command} --json", **json.loads(answer)}))
' "$answer" "$name" "${@:3}" >>"$results" 2>>"$log" || failed+=("$name: its answer is not a JSON object")
}

has() { [[ $parts == *" $1 "* ]]; }

# The limits add up to more than there is: where steps take as long as they may, the last are left out, and their part can be run by itself.
if has tests; then
  step "GPU tests" 170 -m pytest -q -m gpu tests
  tail -n 3 "$answer"
  step "doctor" 40 -m jaxsr doctor --json && cp "$answer" "$out/doctor.json"
fi
if has targets; then # random weights; 64 slices at a time
  benchmark "target: train the teacher on encoded slices" 120 train $teacher "${latents[@]}"
  benchmark "target: a volume by the teacher, resized" 100 upscale $teacher "${whole[@]}" --sampling-steps 50 --slices resize --repeats 1
  benchmark "target: a volume by the teacher, padded" 130 upscale $teacher "${whole[@]}" --sampling-steps 50 --repeats 1
  benchmark "target: a volume by the student of 5 stages" 60 upscale $student method.stages.count=5 "${whole[@]}" --sampling-steps 1 --repeats 1
  benchmark "target: a volume by the student of 20 stages" 100 upscale $student "${whole[@]}" --sampling-steps 1 --repeats 1
fi
if has peers && "$python" -c 'import torch, diffusers' 2>>"$log"; then # the compiler of PyTorch takes minutes for a teacher
  benchmark "layers" 90 layers --precision bf16 --channels 320 --side 32 --batch-size 64 --peer
  benchmark "train the teacher on encoded slices, and the peer" 240 train $teacher "${latents[@]}" --peer
  benchmark "upscale by the teacher, and the peer" 300 upscale $teacher --shape 128,128,64 --sampling-steps 10 --batch-size 64 --repeats 1 --peer
fi
if has sr3; then
  benchmark "count, small" 15 count $small
  benchmark "count, real" 25 count $real
  benchmark "train, small" 40 train $small --steps 50 --warmup 5
  benchmark "upscale, small" 40 upscale $small --shape 192,192,192
  benchmark "train, real, bf16" 80 train $real precision=bf16 --steps 20 --warmup 3
  benchmark "upscale, real, bf16" 80 upscale $real precision=bf16 --shape 128,128,64 --sampling-steps 10
fi
if has teacher; then # with random weights, those of the frozen networks too
  benchmark "count, teacher" 30 count $teacher
  benchmark "train, small teacher" 90 train $teacher_small --steps 10 --warmup 2
  benchmark "compile training, small teacher" 90 compile $teacher_small
  benchmark "compile 1 slice, teacher" 60 compile $teacher --upscale 1
  benchmark "compile 8 slices, teacher" 60 compile $teacher --upscale 8
  benchmark "compile 16 slices, teacher" 60 compile $teacher --upscale 16
  benchmark "upscale, teacher" 120 upscale $teacher --shape 128,128,64 --sampling-steps 10 --batch-size 16
fi
if has student; then
  benchmark "count, student" 30 count $student
  benchmark "compile 1 slice, student" 60 compile $student --upscale 1
  benchmark "compile distilling for a student" 90 compile $teacher --distill 16
  benchmark "train, student" 120 train $student train.batch_size=16 --steps 10 --warmup 2
  benchmark "upscale, student" 120 upscale $student --shape 256,256,32 --sampling-steps 1 --batch-size 16
fi
if has mixture; then # without VGG-16, whose weights are not here
  benchmark "count, mixture" 30 count $mixture
  benchmark "compile 8 slices, mixture" 60 compile $mixture --upscale 8 --size 256
  benchmark "train, mixture" 150 train $mixture method.perceptual=none train.batch_size=8 --steps 10 --warmup 2
  benchmark "upscale, mixture" 120 upscale $mixture --shape 256,256,32 --sampling-steps 10 --batch-size 8
  benchmark "upscale, best expert of each slice" 120 upscale $mixture method.routing=top1 --shape 256,256,32 --sampling-steps 10 --batch-size 8
fi
if has spcdd; then # the last trains with histograms, whose sums are scattered, beside the same without
  benchmark "count, spcdd" 30 count $spcdd
  benchmark "train, spcdd" 150 train $spcdd --steps 10 --warmup 2
  benchmark "upscale, spcdd" 120 upscale $spcdd --shape 128,128,64 --sampling-steps 10 --batch-size 16
  benchmark "train, small spcdd" 60 train configs/spcdd-tiny.yaml --steps 50 --warmup 5
  benchmark "train, small spcdd, histograms" 60 train configs/spcdd-tiny.yaml "$histograms" --steps 50 --warmup 5
fi

# One row a benchmark, one column a figure; what is nested stays in results.jsonl.
"$python" -c '
import datetime, json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
scalars = [{key: value for key, value in row.items() if isinstance(value, str | int | float)} for row in rows]
columns = list(dict.fromkeys(key for row in scalars for key in row if key != "command"))
def cell(value): return f"{value:.4g}" if isinstance(value, float) else str(value)
print(f"Measured {datetime.date.today()} on {sys.argv[2]} at commit {sys.argv[3]}.\n")
for line in (columns, ["---"] * len(columns), *([cell(row.get(key, "")) for key in columns] for row in scalars)):
    print("|", " | ".join(line), "|")
print("", *(f"- {row['"'benchmark'"']}: `{row['"'command'"']}`" for row in scalars), sep="\n")
' "$results" "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)" \
  "$(git rev-parse --short HEAD 2>/dev/null)" >"$out/table.md" 2>>"$log" || failed+=("table")

echo
cat "$out/table.md"
if ((${#failed[@]})); then
  printf '\nFAILED after %s s:\n' "$SECONDS"
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
echo "all done after $SECONDS s: $out"
