"""A head as a benchmark keeps it: the reference, and its simulated acquisition, made once."""

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxsr.evaluate.files import sidecar_path
from jaxsr.evaluate.protocol import Protocol
from jaxsr.files import shown
from jaxsr.simulate import WARNING as SIMULATED
from jaxsr.simulate import Settings, key_of, plan, read_truth
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.sidecar import check_sidecar, json_writer, read_sidecar
from jaxsr.volume.io import VolumeError, write_volume

Note = Callable[[str], None]


def degrade(path: Path, acquired_of: Path, reference: Path, low: Path, protocol: Protocol, made: Mapping[str, Any], note: Note) -> None:
    """Writes the head as `reference`, and as `low` what is acquired of the file `acquired_of`, which is the head's or lies on its grid."""
    if made_so(reference, made) and made_so(low, made):
        return
    from jaxsr.data.acquired import simulate

    for output in (reference, low):
        check_place(output)
    settings = Settings(protocol.acquisition, protocol.seed)
    truth = read_truth(path, settings, note)
    source = truth if acquired_of == path else read_truth(acquired_of, settings, note)
    planned = plan(Job(path, low), source, settings)
    acquired = simulate(source, protocol.acquisition, key_of(path, protocol.seed))
    if not np.isfinite(acquired.data).all():
        raise VolumeError(f"{shown(path)}: the simulated volume is not finite; scale the intensities to a scanner's, below a million")
    # One folder up and down: the same from the reference's.
    sources, sources_of_low = ([os.path.relpath(of.resolve(), low.resolve().parent)] for of in (path, acquired_of))
    block = {**made, "Notes": list(truth.notes), "Made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    what = "as it was degraded for a benchmark" if acquired_of == path else "as its scanner shows it, which is not what was degraded"
    whole = {"Description": f"The head {what}; nothing else was done to it.", "Sources": sources, "JaxSR": block}
    facts = {
        "Description": SIMULATED,
        "Sources": sources_of_low,
        "JaxSR": {**block, "Simulated": True, "Drawn": planned["Drawn"], "AcquiredShape": planned["Shape"]},
    }
    for output in (reference, low):
        output.unlink(missing_ok=True)
    write_volume(reference, truth, description="jaxsr: reference", before={sidecar_path(reference): json_writer(whole)})
    result = replace(truth, data=acquired.data, affine=acquired.affine)
    write_volume(low, result, description="jaxsr: simulated", before={sidecar_path(low): json_writer(facts)})


def check_place(output: Path) -> None:
    """Raises VolumeError where a volume or a sidecar would be replaced that is not ours."""
    check_sidecar(output)
    if output.exists() and read_sidecar(output) is None:
        raise VolumeError(f"{shown(output)} exists and was not written by jaxsr: choose another -o")


def made_so(output: Path, facts: Mapping[str, Any]) -> bool:
    """The volume is there, and its sidecar says `facts` of it."""
    block = (read_sidecar(output) or {"JaxSR": {}})["JaxSR"]
    return output.is_file() and all(block.get(key) == value for key, value in facts.items())
