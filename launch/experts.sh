#!/usr/bin/env bash
# The mixture's experiments from nothing, on a CPU: VQ-VAEs, mixtures, and tables on heads that none of them has seen.
#   launch/experts.sh OUT [PART …]
# Parts, all if none is named, each of which goes on where it was stopped and is quick where it was done:
#   vqvae      vqvae-tiny.yaml, and sr3 (demo.yaml) to stand beside it
#   mixtures   moediff-tiny.yaml with levels of noise drawn for each expert (own), one for all
#              (matched), and that without the diversity of Eq. 16 (free)
#   maps       targets that show b and g, VQ-VAEs that are told of both, one of them or none, and a mixture with each; shorter
#   heads      the middles of heads, degraded to 2 mm, masks of white matter, cortex and junction, and others that show b and g
#   upscale    the first by VQ-VAE (of the truth: what its codes can show), mixtures, each of their experts alone, top1, and sr3
#   regions    tables of those over the whole head and in each region
#   table1     the others by the mixtures of maps [MoEDiff-SR, Table I]
#   curves     how gates learnt: pictures and tables
# Settings: HEADS=2 in a table, SHORT=400 steps of each mixture of maps, and half as many more of each VQ-VAE, PYTHON=python3.
set -euo pipefail
known="vqvae mixtures maps heads upscale regions table1 curves"
usage() { sed -n '2,15s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || usage
out=$1
shift
read -ra parts <<<"${*:-$known}"
for part in "${parts[@]}"; do [[ " $known " == *" $part "* ]] || usage; done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
configs=$root/configs heads=${HEADS:-2} short=${SHORT:-400}
mkdir -p "$out"
python() { command "${PYTHON:-python3}" "$@"; } # also where that is called python
jaxsr() { echo "+ jaxsr $*" >&2; python -m jaxsr "$@"; }
# mixture NAME VQVAE [KEY=VALUE …]: trains one, its latents scaled to a deviation of one, as the VQ-VAE's last tenth of the run measured it.
mixture() {
  local scale
  scale=$(python -c 'import json, sys; s = [json.loads(line)["latent_std"] for line in open(sys.argv[1])]; s = s[-max(len(s) // 10, 1):]; print(f"{len(s) / sum(s):.2f}")' "$out/$2/metrics.jsonl")
  jaxsr train "$configs/moediff-tiny.yaml" method.weights.vqvae="$out/$2" method.vqvae.latent_scale="$scale" --run-dir "$out/$1" "${@:3}"
}
# made NAME MODEL FOLDER [OPTION …]: axial slices of all heads.
made() { jaxsr upscale -i "$out/$3" -o "$out/upscaled/$1" --model "$out/$2" --axes axial --no-montage "${@:4}"; }

run() {
  case $1 in
    vqvae)
      jaxsr train "$configs/vqvae-tiny.yaml" --run-dir "$out/vqvae"
      jaxsr train "$configs/demo.yaml" --run-dir "$out/sr3"
      ;;
    mixtures)
      mixture own vqvae
      mixture matched vqvae method.levels=matched
      mixture free vqvae method.levels=matched method.diversity=0
      ;;
    maps)
      local shown
      for pair in "both [bias,jacobian]" "bias [bias]" "gradient [jacobian]" "none []"; do
        read -r name maps <<<"$pair"
        shown=(data.maps="$maps" "data.carries=[bias,gradient]")
        jaxsr train "$configs/vqvae-tiny.yaml" method.maps="$maps" "${shown[@]}" train.steps=$((short * 3 / 2)) --run-dir "$out/vqvae-$name"
        mixture "maps-$name" "vqvae-$name" method.vqvae.maps="$maps" "${shown[@]}" train.steps="$short"
      done
      ;;
    heads)
      jaxsr generate -o "$out/heads" -n "$heads" --contrast T1w --with labels
      jaxsr generate -o "$out/heads-maps" -n "$heads" --contrast T1w --with plain,bias,gradient --carry bias,gradient --seed 1
      for set in heads heads-maps; do python "$root/docs/make_regions.py" "$out/$set" "$out/$set/middle"; done
      jaxsr simulate -i "$out/heads/middle/high" -o "$out/low" --acquisition 1.5T
      jaxsr simulate -i "$out/heads-maps/middle/plain" -o "$out/low-maps" --acquisition 1.5T
      ;;
    upscale)
      made vqvae vqvae heads/middle/high
      made sr3 sr3 low
      for model in own matched free; do
        made "$model" "$model" low
        for expert in smooth cortex junction top1; do made "$model-$expert" "$model" low --experts "$expert"; done
      done
      highs=("$out"/heads/middle/high/*.nii.gz)
      first=$(basename "${highs[0]}")
      jaxsr upscale -i "$out/low/$first" -o "$out/explained/$first" --model "$out/own" --axes axial --explain --reference "$out/heads/middle/high/$first"
      ;;
    regions)
      local methods=() mask
      for path in "$out"/upscaled/*/; do methods+=(-i "$(basename "$path")=$path"); done
      for region in head white cortex junction; do
        mask=()
        [[ $region == head ]] || mask=(--mask "$out/heads/middle/$region")
        jaxsr evaluate "${methods[@]}" -r "$out/heads/middle/high" -l "$out/low" -o "$out/table-$region" "${mask[@]}"
      done
      ;;
    table1)
      local methods=()
      for name in both gradient bias none; do
        made "../upscaled-maps/$name" "maps-$name" low-maps
        methods+=(-i "$name=$out/upscaled-maps/$name")
      done
      jaxsr evaluate "${methods[@]}" -r "$out/heads-maps/middle/high" -l "$out/low-maps" -o "$out/table1"
      ;;
    curves)
      python "$root/docs/make_gate_figure.py" "$out/gates.png" own="$out/own" matched="$out/matched" free="$out/free"
      python "$root/docs/make_gate_figure.py" "$out/gates-maps.png" both="$out/maps-both" g="$out/maps-gradient" b="$out/maps-bias" none="$out/maps-none"
      ;;
  esac
}
for part in "${parts[@]}"; do run "$part"; done
