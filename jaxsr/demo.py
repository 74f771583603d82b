"""`jaxsr demo`: everything once, on anatomy that comes with the package.

    1  train a small sr3 on heads rendered from tissue maps                    demo/run/
    2  simulate 1.5T scans (2.0 mm) of heads it has never seen                 demo/held_out/truth/, demo/held_out/low/
    3  upscale them to 1.0 mm                                                  demo/held_out/upscaled/
    4  compare with the truth, beside four interpolations                      demo/held_out/metrics.csv, montages/

and 2 to 4 for the MNI T1 template under demo/template/, as an illustration: the training anatomy derives from the same average, so that is
not held out.
"""

import functools
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxsr.data.anatomy import template_t1
from jaxsr.data.subjects import AnatomySubjects, simulate
from jaxsr.evaluate.compare import compare_files
from jaxsr.evaluate.tables import Comparison
from jaxsr.experiment import load_experiment
from jaxsr.physics.acquisition import Acquisition, named_acquisition
from jaxsr.train.loop import train
from jaxsr.upscale.files import Job, Settings, is_done, make_engine, upscale_file
from jaxsr.upscale.model import load_model
from jaxsr.upscale.sidecar import read_sidecar
from jaxsr.volume.io import Volume, write_volume

HELD_OUT = 2
METHOD = "sr3"
SCANS = 2**21  # the purpose of the keys that the simulated scans come from


def run_demo(out: Path, *, steps: int | None, console: Console, progress: Callable[..., Any]) -> Comparison:
    """Runs what is not done yet; returns the comparison on the held-out heads."""
    started = time.monotonic()
    overrides = [] if steps is None else [f"train.steps={steps}"]
    with resources.as_file(resources.files("jaxsr") / "demo.yaml") as path:
        experiment = load_experiment(path, overrides)

    console.print("1  training a small sr3 on synthetic anatomy")
    with progress(console, "training", experiment.train.steps) as (advance, note):
        train(experiment, out / "run", report=lambda step, scalars: advance(step, f"loss {scalars['loss']:.4f}"), note=note)

    data = experiment.data
    acquisition = named_acquisition(data.acquisition)
    console.print(f"2  simulating {data.acquisition} scans of heads it has never seen")
    heads = AnatomySubjects(HELD_OUT, "test", voxel_size=data.voxel_size, acquisition=acquisition, seed=experiment.seed)
    truths: dict[Path, Callable[[], Volume]] = {
        out / "held_out" / "truth" / f"{name}.nii.gz": functools.partial(heads.truth, i) for i, name in enumerate(heads.ids)
    }
    truths[out / "template" / "truth" / "mni-t1.nii.gz"] = template_t1
    for index, (path, truth_of) in enumerate(truths.items()):
        _simulate(path, truth_of, acquisition, jax.random.fold_in(jax.random.key(experiment.seed), SCANS + index))

    model = load_model(out / "run", note=console.print)
    engine = make_engine(model, batch_size=8)
    settings = Settings(data.voxel_size, model.method.default_request)
    console.print(f"3  upscaling to {data.voxel_size:g} mm, sampling steps a slice: {settings.request.steps}, three axes")
    for path in truths:
        job = Job(_beside(path, "low"), _beside(path, "upscaled"))
        facts = read_sidecar(job.output)
        if not is_done(job) or facts is None or facts["JaxSR"]["WeightsSHA256"] != model.sha256:
            with progress(console, path.name, None) as (advance, note):
                upscale_file(engine, model, job, settings, progress=lambda done, total: advance(done, "slices", total), note=note)

    console.print("4  comparing with the truth")
    comparison, illustration = (_compare(out / folder) for folder in ("held_out", "template"))
    _print(console, f"{HELD_OUT} held-out synthetic heads", comparison)
    _print(console, "MNI T1 template (illustration: not held out)", illustration)
    console.print(f"Pictures: {', '.join(str(p) for p in [*comparison.montages, *illustration.montages])}")
    console.print(f"Volumes, tables and the model: {out}/ ({time.monotonic() - started:.0f} s)")
    console.print(f"Next: jaxsr upscale -i YOUR_SCAN.nii.gz -o out.nii.gz --model {out / 'run'}")
    return comparison


def _simulate(path: Path, truth_of: Callable[[], Volume], acquisition: Acquisition, key: jax.Array) -> None:
    low_path = _beside(path, "low")
    if path.exists() and low_path.exists():
        return
    truth = truth_of()
    write_volume(path, truth, description="jaxsr demo: truth")
    write_volume(low_path, simulate(truth, acquisition, key), description="jaxsr demo: simulated scan")


def _beside(truth: Path, folder: str) -> Path:
    return truth.parent.parent / folder / truth.name


def _compare(folder: Path) -> Comparison:
    return compare_files({METHOD: folder / "upscaled"}, folder / "truth", folder, low=folder / "low")


def _print(console: Console, title: str, comparison: Comparison) -> None:
    """The table as measured, and how the model stands against the best interpolation in each metric."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    rows = [{name: text for name, text in row.items() if name not in ("region", "MAE")} for row in comparison.table("foreground")]
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)

    means = {(s.method, s.metric): s.mean for s in comparison.summary if s.region == "foreground"}
    gains = {
        m: means[METHOD, m] - max(v for (method, metric), v in means.items() if metric == m and method != METHOD) for m in ("psnr", "ssim")
    }
    console.print(f"{METHOD} against the best interpolation: PSNR {gains['psnr']:+.2f} dB, SSIM {gains['ssim']:+.4f}\n")
