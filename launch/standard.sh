#!/usr/bin/env bash
# The model that ships with jaxsr, from nothing: who is trained on and who is held out, the run, the exported file, the tables of its card.
#   launch/standard.sh HEADS OUT [PART …]
# HEADS is a folder with the public heads that jaxsr/weights/standard.md names, each in a folder of its own. Parts, all if none is named, each of which goes
# on where it was stopped:
#   split      OUT/heads/…: trained on. OUT/held_out: never trained on, nor anything chosen by. OUT/labels
#   train      configs/standard-start.yaml, -second.yaml, -third.yaml, -fourth.yaml, -fifth.yaml, -sixth.yaml and standard.yaml, each from where
#              the one before ended: OUT/start, second, third, fourth, fifth, sixth, run
#   export     OUT/standard.safetensors, float16
#   evaluate   OUT/evaluation/…: held-out heads degraded to 1.5T, 3T and thick slices, and brought back to their own voxels
#   fine       OUT/evaluation/0.7mm: heads of 0.7 mm, rendered from label maps that are in no training, degraded to 2 mm
#   lesions    OUT/lesions.json: what becomes of lesions, docs/measure_lesions.py
#   modes      OUT/modes.json: how many sampling steps, docs/measure_modes.py
#   smooth     OUT/smooth.json: heads that are smoother than their voxels, docs/measure_smooth.py
# Settings: PYTHON=python3.
set -euo pipefail
known="split train export evaluate fine lesions modes smooth"
usage() { sed -n '2,15s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 2 && $1 != -* ]] || usage
heads=$1 out=$2
shift 2
read -ra parts <<<"${*:-$known}"
for part in "${parts[@]}"; do [[ " $known " == *" $part "* ]] || usage; done
given=$(cd "$heads" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out"
cd "$out"
python() { PYTHONPATH=$root command "${PYTHON:-python3}" "$@"; } # also where that is called python
jaxsr() { echo "+ jaxsr $*" >&2; python -m jaxsr "$@"; }
# place FOLDER NAME FILE: a head, under a name that says whose it is.
place() {
  [[ -f $given/$3 ]] || { echo "$given/$3 is not there: jaxsr/weights/standard.md says where it comes from" >&2; exit 2; }
  mkdir -p "$1"
  ln -sfn "$given/$3" "$1/$2"
}

# halt RUN STEP CONFIG: trains until the checkpoint of STEP is there, and leaves no later one.
halt() {
  local run=$1 step=$2 config=$3 training
  if [[ ! -d $run/checkpoints/$step ]]; then
    jaxsr train "$config" --run-dir "$run" &
    training=$!
    while [[ ! -d $run/checkpoints/$step ]] && kill -0 "$training" 2>/dev/null; do sleep 1; done
    kill -TERM "$training" 2>/dev/null || true
    wait "$training" || true
  fi
  [[ -d $run/checkpoints/$step ]] || { echo "$run ended before step $step" >&2; exit 1; }
  find "$run/checkpoints" -mindepth 1 -maxdepth 1 ! -name "$step" -exec rm -r {} +
}

# The split, fixed before anything was trained: a person is on one side with all contrasts. Who is added later is added to one of the two.
split() {
  local folder # all in heads/isotropic, and apart by whether they were resampled to an atlas
  for folder in heads/isotropic heads/scanned; do
    place "$folder" sub-pysynthsr_FLAIR.nii.gz py_synthsr/FLAIR_1mm_defaced.nii.gz
    place "$folder" sub-uih_T1w.nii.gz uih_t1/T1w_0p5mm_defaced.nii.gz
  done
  for contrast in T1 T2 FLAIR; do
    for folder in heads/isotropic heads/registered; do
      place "$folder" "sub-openms07_$contrast.nii.gz" "open_ms_patient07/${contrast}_brain_MNI1mm.nii.gz"
    done
    place held_out "sub-openms19_$contrast.nii.gz" "open_ms_patient19/${contrast}_brain_MNI1mm.nii.gz"
  done
  place heads/slices sub-openmslong12_T1.nii.gz open_ms_long_patient12/study1_T1W.nii.gz
  place heads/slices sub-openmslong12_T2.nii.gz open_ms_long_patient12/study1_T2W.nii.gz
  place heads/slices sub-openmslong12_FLAIR.nii.gz open_ms_long_patient12/study1_FLAIR.nii.gz
  place held_out sub-fnndsc_T1w.nii.gz fnndsc_adult/T1w_MEMPRAGE_defaced.nii.gz
  place held_out sub-fnndsc_T2w.nii.gz fnndsc_adult/T2w_FSE_axial_thick_defaced.nii.gz
  place held_out sub-clinical_T2w.nii clinical_toolbox/T2_1mm.nii
  place held_out sub-freesurfer_T1w.mgz freesurferformats/brain.mgz
  ln -sfn "$given/synthseg_labels" labels
}

# labels_held_out: the label maps of the splits that training does not see, by the training's own rule.
held_out_maps() {
  mkdir -p labels_held_out
  python - "$root/docs" <<'END' | while read -r path; do ln -sfn "$path" labels_held_out/; done
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from measure_lesions import held_out_maps
print(*(path.resolve() for path in held_out_maps(Path("labels"))), sep="\n")
END
}

run() {
  case $1 in
    split) split ;;
    train)
      # The first part was ended at its 4000th step, half-way down its learning rate: `halt` does that again.
      [[ -f start.safetensors ]] || { halt start 4000 "$root/configs/standard-start.yaml"; jaxsr export start start.safetensors; }
      local part
      for part in second third fourth fifth sixth; do
        [[ -f $part.safetensors ]] || {
          jaxsr train "$root/configs/standard-$part.yaml" --run-dir $part
          jaxsr export $part $part.safetensors --dtype float16
        }
      done
      jaxsr train "$root/configs/standard.yaml" --run-dir run
      ;;
    export) jaxsr export run standard.safetensors --dtype float16 --overwrite ;;
    evaluate)
      for protocol in 2mm 3T thick-slice; do
        jaxsr evaluate --protocol "$root/configs/protocols/$protocol-to-native.yaml" -r held_out --models standard=standard.safetensors \
          -o "evaluation/$protocol" --report
      done
      ;;
    fine)
      held_out_maps
      jaxsr generate -o fine --labels labels_held_out --voxel-size 0.7 --seed 7 -n 2
      jaxsr evaluate --protocol "$root/configs/protocols/2mm-to-0.7mm.yaml" -r fine --models standard=standard.safetensors \
        -o evaluation/0.7mm --report
      ;;
    lesions) python "$root/docs/measure_lesions.py" standard.safetensors labels lesions.json ;;
    modes) python "$root/docs/measure_modes.py" standard.safetensors labels modes.json ;;
    smooth) python "$root/docs/measure_smooth.py" standard.safetensors heads/isotropic labels smooth.json ;;
  esac
}
for part in "${parts[@]}"; do run "$part"; done
