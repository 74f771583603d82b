"""`jaxsr demo`: everything once, on anatomy that comes with the package.

    simulate 1.5T scans (2.0 mm) of heads that the model has never seen     demo/held_out/truth/, demo/held_out/low/
    upscale them to 1.0 mm                                                  demo/held_out/upscaled/
    compare with the truth, beside four interpolations                      demo/held_out/metrics.csv, montages/

and the same for the MNI T1 template under demo/template/. The model is the one that comes with jaxsr; with `train`, one that is trained
first, demo/run/, on heads rendered from tissue maps. The template is no held-out head for that one: those maps derive from it.
"""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax

from jaxsr.data.acquired import simulate
from jaxsr.data.anatomy import template_t1
from jaxsr.data.subjects import AnatomySubjects
from jaxsr.evaluate.compare import compare_files
from jaxsr.evaluate.tables import Comparison
from jaxsr.experiment import load_experiment
from jaxsr.physics.acquisition import Acquisition
from jaxsr.train.loop import train as run_training
from jaxsr.upscale.files import make_engine, upscale_file
from jaxsr.upscale.inputs import Job, is_done
from jaxsr.upscale.model import load_model
from jaxsr.upscale.settings import Settings
from jaxsr.upscale.sidecar import read_sidecar
from jaxsr.volume.geometry import resample, target_grid
from jaxsr.volume.io import Volume, write_volume
from jaxsr.weights.standard import SHIPPED, STANDARD

HELD_OUT = 2
SCANS = 2**21  # the purpose of the keys that the simulated scans come from


class Found(NamedTuple):
    """What a demo measured, and where it is."""

    held_out: Comparison
    template: Comparison
    method: str
    model: Path
    seconds: float


def run_demo(
    out: Path,
    say: Callable[[str], None],
    progress: Callable[[str, int | None], AbstractContextManager[tuple[Callable[..., None], Callable[[str], None]]]],
    *,
    train: bool = False,
    overrides: Sequence[str] = (),
) -> Found:
    """Runs what is not done yet, under `out`.

    Args:
      train: a small model first, and upscale with that.
      say: told what begins.
      progress: `progress(title, total)` gives, for as long as the context lasts, `advance(done, text, total)` and `note(sentence)`.
      overrides: of the demo's configuration.
    """
    started = time.monotonic()
    with resources.as_file(resources.files("jaxsr") / "demo.yaml") as path:
        experiment = load_experiment(path, overrides)

    method, source = ("sr3", out / "run") if train else (STANDARD.name, SHIPPED)
    if train:
        say("training a small sr3 on synthetic anatomy")
        with progress("training", experiment.train.steps) as (advance, note):
            run_training(experiment, source, report=lambda step, scalars: advance(step, f"loss {scalars['loss']:.4f}"), note=note)

    data = experiment.data
    acquisition = data.acquisition
    say(f"simulating {acquisition.name} scans of heads that the model has never seen")
    heads = AnatomySubjects(HELD_OUT, "test", voxel_size=data.voxel_size, acquisition=acquisition, seed=experiment.seed)
    truths: dict[Path, Callable[[], Volume]] = {
        out / "held_out" / "truth" / f"{name}.nii.gz": functools.partial(heads.truth, i) for i, name in enumerate(heads.ids)
    }
    truths[out / "template" / "truth" / "mni-t1.nii.gz"] = functools.partial(_template, data.voxel_size)
    for index, (path, truth_of) in enumerate(truths.items()):
        _simulate(path, truth_of, acquisition, jax.random.fold_in(jax.random.key(experiment.seed), SCANS + index))

    model = load_model(source, note=say)
    engine = make_engine(model, batch_size=8)
    settings = Settings(data.voxel_size, model.method.default_request, picture=False)
    say(f"upscaling to {data.voxel_size:g} mm, sampling steps a slice: {settings.request.steps}, three axes")
    for path in truths:
        job = Job(_beside(path, "low"), _beside(path, "upscaled"))
        facts = read_sidecar(job.output)
        if not is_done(job) or facts is None or facts["JaxSR"]["WeightsSHA256"] != model.sha256:
            with progress(path.name, None) as (advance, note):
                upscale_file(engine, model, job, settings, progress=functools.partial(_slices, advance), note=note)

    say("comparing with the truth")
    held_out, template = (_compare(method, out / folder) for folder in ("held_out", "template"))
    return Found(held_out, template, method, source, time.monotonic() - started)


def gains(comparison: Comparison, region: str, of: str) -> dict[str, float]:
    """By how much the mean of the method `of` beats the best interpolation's, in each of PSNR (dB) and SSIM."""
    means = {(s.method, s.metric): s.mean for s in comparison.summary if s.region == region}
    others = {metric: [v for (method, m), v in means.items() if m == metric and method != of] for metric in ("psnr", "ssim")}
    return {metric: means[of, metric] - max(values) for metric, values in others.items()}


def _template(voxel_size: float) -> Volume:
    template = template_t1()
    grid = target_grid(template.grid, voxel_size)
    return Volume(resample(template.data, template.grid, grid), grid.affine)


def _slices(advance: Callable[..., None], done: int, total: int) -> None:
    advance(done, "slices", total)


def _simulate(path: Path, truth_of: Callable[[], Volume], acquisition: Acquisition, key: jax.Array) -> None:
    low_path = _beside(path, "low")
    if path.exists() and low_path.exists():
        return
    truth = truth_of()
    write_volume(path, truth, description="jaxsr demo: truth")
    write_volume(low_path, simulate(truth, acquisition, key), description="jaxsr demo: simulated scan")


def _beside(truth: Path, folder: str) -> Path:
    return truth.parent.parent / folder / truth.name


def _compare(method: str, folder: Path) -> Comparison:
    return compare_files({method: folder / "upscaled"}, folder / "truth", folder, low=folder / "low")
