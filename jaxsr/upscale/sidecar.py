"""The sidecar: a JSON file beside every output that says it is synthetic and how it was made."""

import datetime
import itertools
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import jaxsr
from jaxsr.data.layouts.entities import parse
from jaxsr.evaluate.files import sidecar_path, stem
from jaxsr.files import Writer, shown, write_whole
from jaxsr.upscale.inputs import Job
from jaxsr.volume.io import VolumeError

if TYPE_CHECKING:  # they need JAX, and where a sidecar lies must be known before it is imported
    from jaxsr.experiment import DataConfig
    from jaxsr.methods.base import Method, Request
    from jaxsr.upscale.engine import Upscaled
    from jaxsr.upscale.model import Model
    from jaxsr.upscale.plan import Plan
    from jaxsr.volume.io import Volume
    from jaxsr.volume.quality import Quality

WARNING = "Synthetic: upscaled by a generative model. Structures may be invented or lost. For research only, not for diagnosis."

_DESCRIPTIONS = {
    "std": "Standard deviation, voxel by voxel, of samples of a generative model that upscaled a scan; units of the scan. "
    "A small one is no proof of truth. For research only, not for diagnosis.",
    "sample": WARNING,
    "attention": "How strongly the query of one expert of a mixture looks at each place, 1 where evenly; the mean over slice axes.",
    "weight": "Weight of one expert of a mixture at each place, of the slice or, where the gate looks at tokens, of the pixel; the mean "
    "over slice axes.",
    "mask": "How likely a network takes each voxel for one tissue, from 0 to 1. For research only, not for diagnosis.",
    "error": "Absolute difference between what one expert of a mixture makes alone and a reference; units of the scan.",
    "consistency": "How far an upscaled scan, degraded as the scan was acquired, lies from the scan, in units of its noise: "
    "(H x - y) / sigma. For research only, not for diagnosis.",
}


EXPERTS = ("smooth", "cortex", "junction")  # of a mixture, known here before jax is
EXPLAINING = ("experts", "attention")  # pictures of what they did, by the names that `map_path` takes


def read_sidecar(output: Path) -> dict[str, Any] | None:
    """What `describe` wrote beside `output`, or None where there is nothing of ours."""
    try:
        facts = json.loads(sidecar_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "JaxSR" in facts else None


def picture_path(output: Path) -> Path:
    """`scan.nii.gz` → `scan.png`."""
    return sidecar_path(output).with_suffix(".png")


def map_path(output: Path, name: str) -> Path:
    """Where the map `name` of an output lies: `scan_sr.nii.gz` → `scan_sr_std.nii.gz`; in BIDS names it is told by desc-, so
    `sub-1_res-1mm_desc-sr_T1w.nii.gz` → `sub-1_res-1mm_desc-srstd_T1w.nii.gz`. The map 'consistency' is on the input's grid: no res-."""
    base = stem(output)
    named = parse(PurePosixPath(base))
    if named:
        entities = {key: value for key, value in named.entities.items() if key != "desc" and (key, name) != ("res", "consistency")}
        words = [f"{key}-{value}" for key, value in entities.items()]
        mapped = "_".join([*words, f"desc-{named.entities.get('desc', '')}{name.replace('-', '')}", named.suffix])
    else:
        mapped = f"{base}_{name}"
    return output.with_name(mapped + output.name[len(base) :])


def sample_name(sample: int) -> str:
    """What `map_path` calls sample `sample`, from 0."""
    return f"sample-{sample}"


def mask_names(tissues: Iterable[str]) -> list[str]:
    """What `map_path` calls the masks that lie beside a label map; none of the first class, which is all else."""
    return [f"mask-{name}" for name in list(tissues)[1:]]


def map_names(
    samples: int, *, keep: bool = False, consistency: bool = False, explain: bool = False, errors: bool = False
) -> tuple[str, ...]:
    """Of what is written beside an output, as `map_path` takes them."""
    kept = [sample_name(sample) for sample in range(samples)] if keep else []
    kinds = [*["attention", "weight"] * explain, *["error"] * errors]
    experts = [f"{kind}-{expert + 1}" for kind in kinds for expert in range(len(EXPERTS))]
    return (*kept, *["std"] * (samples > 1), *["consistency"] * consistency, *experts)


def check_maps(jobs: Iterable[Job], names: Iterable[str]) -> None:
    """Raises VolumeError where a map would lie where another job's input or output does, or replace a volume that is not ours."""
    jobs, names = list(jobs), list(names)
    taken = {_resolved(path) for job in jobs for path in (job.source, job.output)}
    for job in jobs:
        for path in (map_path(job.output, name) for name in names):
            if _resolved(path) in taken:
                raise VolumeError(f"{shown(path)}, a map of {shown(job.output)}, is another volume's place: choose another -o")
            taken.add(_resolved(path))
            check_sidecar(path)
            if path.exists() and read_sidecar(path) is None:
                raise VolumeError(f"{shown(path)} exists and was not written by jaxsr: choose another -o, whose maps do not replace it")


def stale_maps(output: Path, names: Iterable[str]) -> list[Path]:
    """Maps of an earlier output in the place of `output`, with their sidecars, and pictures of its experts, that `names` do not replace."""
    names, before = list(names), (read_sidecar(output) or {}).get("JaxSR") or {}
    beside = itertools.takewhile(lambda name: map_path(output, name).exists(), map(sample_name, itertools.count()))
    others = [*map_names(2, consistency=True, explain=True, errors=True), *mask_names(before.get("Labels", {}).values())]
    paths = [map_path(output, name) for name in (*others, *beside) if name not in names]
    ours = [path for path in paths if ((read_sidecar(path) or {}).get("JaxSR") or {}).get("Of") == output.name]
    pictures = [picture_path(map_path(output, name)) for name in EXPLAINING if "Gates" in before and name not in names]
    return [lies for path in ours for lies in (path, sidecar_path(path))] + pictures


def check_sidecar(output: Path, *, picture: bool = False, explain: bool = False) -> None:
    """Raises VolumeError where the sidecar, or a picture, would replace a file that is not ours; pictures are where our sidecar is."""
    facts = read_sidecar(output)
    path, ours = sidecar_path(output), (facts or {}).get("JaxSR") or {}
    if facts is None and path.exists():
        raise VolumeError(f"{shown(path)} exists and was not written by jaxsr: choose another -o, whose sidecar does not replace it")
    drawn = [picture_path(output)] if picture and facts is None else []
    drawn += [picture_path(map_path(output, name)) for name in EXPLAINING if picture and explain and "Gates" not in ours]
    for lies in drawn:
        if lies.exists():
            raise VolumeError(
                f"{shown(lies)} exists and was not written by jaxsr: choose another -o, whose picture does not replace it, or --no-montage"
            )


def check_record(path: Path, jobs: Iterable[Job], maps: Iterable[str] = ()) -> None:
    """Raises VolumeError where a record of a run at `path` would replace what is read or written for `jobs`, or a file that is not ours."""
    taken: dict[Path, str] = {}
    names = list(maps)
    for source, output, _ in jobs:
        for lies in (map_path(output, name) for name in names):
            taken |= {_resolved(lies): "a map", _resolved(sidecar_path(lies)): "a sidecar"}
        taken |= {
            _resolved(output.parent): "the outputs' folder",
            _resolved(source): "an input",
            _resolved(output): "an output",
            _resolved(sidecar_path(output)): "a sidecar",
            _resolved(picture_path(output)): "a picture",
        }
    if what := taken.get(_resolved(path)):
        raise VolumeError(f"--run-json {shown(path)} is the place of {what}: name another file")
    if not path.exists():
        return
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    if not (isinstance(facts, dict) and {"DryRun", "Volumes"} <= facts.keys()):
        raise VolumeError(f"--run-json {shown(path)} exists and is no record of a run: name another file")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a zero in it, or links in a circle: reading says so
        return path.absolute()


def _names(data: "DataConfig") -> str:
    """Of the acquisitions that scans were simulated as."""
    return ", ".join(dict.fromkeys(acquisition.name for acquisition in data.all_acquisitions))


def describe(model: "Model", job: Job, result: "Upscaled", request: "Request", **settings: Any) -> dict[str, Any]:
    """BIDS-derivatives keys where BIDS has them, ours under `JaxSR`."""
    import jax

    return {
        "Description": WARNING,
        **_bids_keys(job),
        "Resolution": millimetres(result.volume.voxel_size),
        "JaxSR": {
            "Version": jaxsr.__version__,
            "Model": model.name,
            "Method": model.experiment.method.kind,
            "Checkpoint": model.step,
            "WeightsSHA256": model.sha256,
            **({"Frozen": dict(model.frozen)} if model.frozen else {}),
            "TrainedVoxelSize": model.experiment.data.voxel_size,
            "TrainedAcquisition": millimetres(model.experiment.data.acquired) or _names(model.experiment.data),
            "SamplingSteps": request.steps,
            "Eta": request.eta,
            **_routing(model.method, request),
            "IntensityWindow": [result.window.low, result.window.high],
            "Axes": list(result.plan.axes),
            **({"Passes": result.plan.passes} if result.plan.passes > 1 else {}),
            **_planes(result.plan),
            **({"ToldQuality": _rounded(result.quality)} if result.quality else {}),
            "Notes": [*result.volume.notes, *result.plan.left_out],
            **result.metrics,
            **settings,
            "Made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "Jax": jax.__version__,
            "Device": jax.local_devices()[0].device_kind,
            "Devices": jax.local_device_count(),
            "Platform": platform.platform(),
        },
    }


def _routing(method: "Method", request: "Request") -> dict[str, Any]:
    """Of a mixture, which of its experts made the slices."""
    if not hasattr(method, "experts"):
        return {}
    return {"Routing": request.routing if request.expert is None else method.experts[request.expert]}


def _planes(plan: "Plan") -> dict[str, Any]:
    """Of a model that goes from voxel size to voxel size, which in the slices of each axis; None where they were passed on."""
    if plan.work is plan.grid:
        return {}
    asked = zip(plan.axes, plan.requests, strict=True)
    return {"FromToVoxelSize": {axis: [request.from_mm, request.to_mm] if request else None for axis, request in asked}}


def _rounded(quality: "Quality") -> dict[str, Any]:
    """As JSON holds it: sharpness to the right, front, top."""
    found = "air" if quality.air else "tissue"
    return {"Sharpness": [round(value, 3) for value in quality.sharpness], "Noise": round(quality.noise, 4), "NoiseFrom": found}


def describe_map(job: Job, main: dict[str, Any], name: str, volume: "Volume", **own: Any) -> dict[str, Any]:
    """The sidecar of the map `name`, of which `main` is the output's; `own` goes under `JaxSR`."""
    keys = _bids_keys(job)
    kind = name.partition("-")[0]
    if kind == "consistency":  # which is made of both
        root = job.derivative.root if job.derivative else None
        keys["Sources"].append(f"bids::{job.output.relative_to(root).as_posix()}" if root else job.output.name)
    of_model = ("Version", "Model", "Method", "Checkpoint", "WeightsSHA256")
    same = (*of_model, "SamplingSteps", "Eta", "Passes", "Routing", "Seed", "Samples", "Made")
    return {
        "Description": _DESCRIPTIONS[kind],
        **keys,
        "Resolution": millimetres(volume.voxel_size),
        "JaxSR": {"Map": name, "Of": job.output.name, **{key: main["JaxSR"][key] for key in same if key in main["JaxSR"]}, **own},
    }


def _bids_keys(job: Job) -> dict[str, Any]:
    if job.derivative:
        return {"Sources": [job.derivative.uri], **job.derivative.keys}
    return {"Sources": [os.path.relpath(job.source.resolve(), job.output.resolve().parent)]}


def write_json(path: Path, content: Any) -> None:
    """Writes whole or not at all."""
    write_whole(path, json_writer(content))


def json_writer(content: Any) -> Writer:
    """Writes `content` to a path as JSON in UTF-8; what is no text in a file's name is escaped, which JSON can."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace")


def millimetres(size: tuple[float, float, float] | None) -> str:
    """As in '2 × 2 × 5 mm'."""
    return f"{' × '.join(f'{v:g}' for v in size)} mm" if size else ""
