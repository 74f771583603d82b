#!/usr/bin/env bash
# N processes of jaxsr on this machine, one GPU each where there are GPUs:
#   launch/local.sh N train CONFIG [key=value …] --run-dir DIR
#   launch/local.sh N upscale -i FOLDER -o FOLDER --model RUN
# The processes train together; of volumes each upscales its own. The first process talks; what the others say goes to a temporary folder,
# which is kept and named if one fails, with its last lines.
set -euo pipefail
[[ ${1:-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || { sed -n '2,6s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export JAXSR_PROCESSES=$1
shift
command=$1
python=${PYTHON:-python3}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAXSR_COORDINATOR=localhost:$port
visible=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd, || true)}
IFS=, read -ra gpus <<<"$visible"
logs=$(mktemp -d)
grace=${GRACE:-30} # seconds that the others have to leave, where one has failed
pids=() killer=

# shellcheck disable=SC2046  # a word a process
stop() { kill -TERM $(jobs -rp) 2>/dev/null || true; }
trap stop INT TERM
for ((i = 0; i < JAXSR_PROCESSES; i++)); do
  export JAXSR_PROCESS=$i
  if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES=${gpus[i % ${#gpus[@]}]}; fi
  if ((i == 0)); then "$python" -m jaxsr "$@" & else "$python" -m jaxsr "$@" >"$logs/$i.log" 2>&1 & fi
  pids+=($!)
done

# One that fails takes the others with it, since they would wait for it, JAX for 100 s; so does a signal, on which each saves and leaves.
# Those that upscale wait for nobody, so they go on.
status=0
while code=0 && { wait -n || code=$?; } && { ((code != 127)) || [[ -n $(jobs -rp) ]]; }; do
  if ((code && !status)); then
    status=$code
    if [[ $command != upscale ]]; then
      stop
      (sleep "$grace" && kill -KILL "${pids[@]}") >/dev/null 2>&1 </dev/null &
      killer=$!
      disown
    fi
  fi
done
if [[ $killer ]]; then kill "$killer" 2>/dev/null || true; fi
if ((status)); then
  tail -n 4 "$logs"/*.log >&2 2>/dev/null || true
  echo "one of $JAXSR_PROCESSES processes ended with status $status; what all but the first said is in $logs" >&2
else
  rm -r "$logs"
fi
exit "$status"
