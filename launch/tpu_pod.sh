#!/usr/bin/env bash
# One process on every host of a TPU pod slice, and its log here:
#   launch/tpu_pod.sh NAME ZONE train CONFIG [key=value …] --run-dir gs-mounted/DIR
#   launch/tpu_pod.sh NAME ZONE upscale -i FOLDER -o FOLDER --model RUN
# NAME is a TPU VM that is there (gcloud compute tpus tpu-vm create), on whose hosts `pip install 'jaxsr[tpu]'` has been run, and FOLDER and DIR
# are on a file system that all of them see (Filestore, or a bucket by gcsfuse). A run that a preempted slice leaves resumes from DIR on the next.
# Settings: FOLDER=~/jaxsr, where the repository is on the hosts; PORT=8476; DRY_RUN=1 prints what would be run.
set -euo pipefail
[[ $# -ge 4 && $3 != *.yaml ]] || { sed -n '2,7s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
name=$1 zone=$2
shift 2
addresses=$(gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format 'value[delimiter=" "](networkEndpoints[].ipAddress)')
read -ra hosts <<<"${addresses//;/ }"
((${#hosts[@]})) || { echo "$name in $zone has no hosts: is it READY? (gcloud compute tpus tpu-vm list --zone $zone)" >&2; exit 2; }

# shellcheck disable=SC2016  # on each host: its own number is in its metadata
number='$(curl -sfH Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)'
command="cd ${FOLDER:-~/jaxsr} && source launch/environment.sh && \
JAXSR_COORDINATOR=${hosts[0]}:${PORT:-8476} JAXSR_PROCESSES=${#hosts[@]} JAXSR_PROCESS=$number jaxsr$(printf ' %q' "$@")"
run=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$command")
if [[ ${DRY_RUN:-0} == 1 ]]; then
  printf '%q ' "${run[@]}"
  echo
else
  exec "${run[@]}"
fi
