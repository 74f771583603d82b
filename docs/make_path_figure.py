"""Draws where the stages of students lead [teacher paper, Table III]: `python docs/make_path_figure.py PICTURE EVALUATION RUN…`.

EVALUATION is a folder that `jaxsr evaluate --protocol configs/ablations/students.yaml` wrote, with a teacher among its models: of its first
head six axial slices are taken, through the middle. Every image on the way, of all six slices, is one point in as many dimensions as they
have pixels; principal components and t-SNE show where the points lie to one another. The lower panels measure how far each is from the
teacher's output, and from the truth, in dB of their range.
"""

import itertools
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from jaxsr.files import write_whole
from jaxsr.upscale.model import load_model
from jaxsr.upscale.stages import stage_path
from jaxsr.volume.io import read_volume

COLOURS = itertools.cycle(("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00"))
ENDS = {"scan": ("#0000ff", "s"), "teacher": ("#ff0000", "*"), "truth": ("#000000", "D")}
SLICES = 6


def decibels(images: np.ndarray, of: np.ndarray, span: float) -> np.ndarray:
    """PSNR of each of `images` `[n, …]`."""
    return np.asarray(10 * np.log10(span**2 / ((images - of) ** 2).reshape(len(images), -1).mean(1)))


def main(picture: Path, evaluation: Path, runs: list[Path]) -> None:
    subject = sorted((evaluation / "reference").glob("*.nii.gz"))[0].name
    reference, low, teacher = (read_volume(evaluation / place / subject) for place in ("reference", "low", "upscaled/teacher"))
    slices = [int(z) for z in np.linspace(0.35, 0.65, SLICES) * reference.data.shape[2]]
    truth, taught = (np.moveaxis(volume.data[:, :, slices], 2, 0) for volume in (reference, teacher))
    models, colours = [load_model(run) for run in runs], [next(COLOURS) for _ in runs]
    paths = [stage_path(model, low, reference.grid, slices) for model in models]
    counts = [model.experiment.method.stages.count for model in models]
    span = float(np.percentile(truth, 99.9) - np.percentile(truth, 0.1))
    points = np.stack([paths[0].images[0], taught, truth, *(image for path in paths for image in path.images[1:])])
    flat = points.reshape(len(points), -1)
    maps = {
        "principal components": PCA(2).fit_transform(flat),
        "t-SNE": TSNE(2, perplexity=min(15, (len(flat) - 1) / 3), init="pca", random_state=0).fit_transform(flat),
    }
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    for axis, (title, places) in zip(axes[0], maps.items(), strict=True):
        first = len(ENDS)
        for path, count, colour in zip(paths, counts, colours, strict=True):
            own = places[first : first + len(path.images) - 1]
            first += len(own)
            way = np.concatenate([places[:1], own])
            axis.plot(*way.T, ".-", color=colour, linewidth=0.8, markersize=4, label=f"N = {count}")
        for (name, (colour, marker)), place in zip(ENDS.items(), places, strict=False):
            axis.plot(*place, marker, color=colour, markersize=10 if marker == "*" else 7, label=name)
        axis.set(title=title, xticks=[], yticks=[])
    axes[0, 0].legend(fontsize=8)
    for axis, (name, of) in zip(axes[1], {"teacher": taught, "truth": truth}.items(), strict=True):
        for path, count, colour in zip(paths, counts, colours, strict=True):
            axis.plot(path.stages / count, decibels(path.images, of, span), ".-", color=colour, label=f"N = {count}")
        axis.set(xlabel="stage / N", ylabel=f"PSNR against the {name} (dB)")
        axis.grid(alpha=0.3)
    axes[1, 1].axhline(reached := decibels(taught[None], truth, span)[0], color=ENDS["teacher"][0], linestyle=":", label="teacher")
    axes[1, 1].legend(fontsize=8)
    write_whole(picture, lambda part: figure.savefig(part, dpi=110, format="png"))
    print(f"{subject}, axial slices {slices}; the teacher against the truth: {reached:.2f} dB")
    for path, count in zip(paths, counts, strict=True):
        last = [decibels(path.images[-1:], of, span)[0] for of in (truth, taught)]
        share = f"{100 * last[0] / reached:.1f} % of the teacher's"
        print(f"N = {count}: {last[0]:.2f} dB against the truth, {share}; {last[1]:.2f} dB against the teacher")


if __name__ == "__main__":
    if len(sys.argv) < 4 or not (Path(sys.argv[2]) / "upscaled/teacher").is_dir():
        sys.exit(f"{__doc__}\nname a picture, such a folder, and runs of students")
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(run) for run in sys.argv[3:]])
