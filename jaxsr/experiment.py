"""The root of every config: what an experiment is, in five parts. `configs/*.yaml` are instances; `jaxsr config show` prints one whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from jaxsr.config import Strict, load
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pairs import MapName
from jaxsr.data.variety import Variety
from jaxsr.methods import MethodConfig
from jaxsr.physics.protocol import Acquisition, named_acquisition


class SourceConfig(Strict):
    """One source of a mixture.

    Attributes:
      share: of the visits, beside the other sources' shares.
      volumes, labels: as of `DataConfig`; neither: the embedded anatomy.
      voxel_size: mm of the target.
      native: volumes are left as coarse as they are along an axis where they are coarser than that; slices are cut where pixels are about
        square.
      zoom: each visit takes a volume's voxels for so many times as large as they are, one of 5 equidistant values.
      contrasts: share of the visits at which the grey values of a volume go through a random curve (`jaxsr.data.variety`).
      smooth: voxels; at every second visit a volume, or what was rendered, goes through a Gaussian of a standard deviation up to this.
      cleared: share of the visits at which the air of a volume is 0, in what was acquired too, as scanners and skull stripping leave it.
      acquisitions: what the low-resolution side is simulated as: each visit draws one; one that stands here twice is drawn twice as often.
        Empty: those of `DataConfig`.
      subjects, contrast: as of `DataConfig`.
    """

    share: float = pydantic.Field(1.0, gt=0)
    volumes: Path | None = None
    labels: Path | None = None
    voxel_size: float = pydantic.Field(1.0, ge=0.1, le=10)
    native: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    contrasts: float = pydantic.Field(0.0, ge=0, le=1)
    smooth: float = pydantic.Field(0.0, ge=0, le=2)
    cleared: float = pydantic.Field(0.0, ge=0, le=1)
    acquisitions: tuple[Acquisition, ...] = ()
    subjects: int = pydantic.Field(1000, ge=1)
    contrast: Literal["random", "T1w", "T2w", "PDw", "FLAIR"] = "random"

    @pydantic.model_validator(mode="after")
    def _one_set(self) -> "SourceConfig":
        if self.volumes and self.labels:
            raise ValueError("volumes and labels name two sets: make two sources of them")
        if self.native and not self.volumes:
            raise ValueError("native is of volumes: what is rendered has no voxels of its own")
        if self.variety._replace(smooth=0.0) != Variety() and not self.volumes:
            raise ValueError("zoom, contrasts and cleared are of volumes: what is rendered differs in that by itself")
        if not 0.5 <= self.zoom[0] <= self.zoom[1] <= 2:
            raise ValueError(f"zoom is the least and the greatest, from 0.5 to 2, got {list(self.zoom)}")
        return self

    @property
    def variety(self) -> Variety:
        return Variety(self.zoom, self.contrasts, self.smooth, self.cleared)


class DataConfig(Strict):
    """Where slices come from.

    Attributes:
      volumes: a folder of high-resolution volumes (NIfTI or MGH, any size), or null: the embedded anatomy.
      labels: a folder of label maps (FreeSurfer's numbers), of which endless heads are rendered, or null.
      manifest: a set that `jaxsr prepare` wrote, its folder or manifest.json, or null. Those of the keys below that say how slices are made
        (acquisition, interpolation, subjects, contrast, carries, draws, window) then mean nothing.
      mixture: sources that are mixed, in place of one; each says for itself what the keys volumes, labels, voxel_size, acquisition,
        subjects and contrast say of one. Those still say what is typical, as for `bench`.
      acquisitions: of the sources of a mixture that name none.
      voxel_size: mm of the target, isotropic; that of the prepared set, where there is one.
      acquisition: what the low-resolution side is simulated as: 1.5T (2.0 mm), 3T (1.5 mm), 64mT or thick-slice; one of them with other
        settings, {name: thick-slice, snr: [10, 20]}; or one's own. The settings stand in physics/protocol.py.
      interpolation: that brings a low-resolution volume to the target grid, in training and in `upscale`: linear, cubic, or kspace (zero
        filling; best for three-dimensional acquisitions, rings between thick slices).
      acquired: mm of the low-resolution scans of a prepared set, which says it; of what is simulated, the acquisition does.
      crop: side of the training slices in pixels.
      subjects: heads of the embedded set, or of label maps, to train on.
      contrast: of those heads: random, T1w, T2w or PDw, from label maps FLAIR too.
      draws: slices taken of a subject each time it is visited.
      window: subjects mixed at a time; memory holds two more, and as many again of those without pairs.
      maps: what slices have beside high and low, where the set has it: reference, bias, gradient, jacobian, labels, mask.
      carries: what of the target scanner a rendered head shows: bias, gradient. What is acquired has neither, so that only who is given the
        maps can know them.
      augment: true: flip slices at random; or a mapping of flip, rotation, scale, elastic, gamma.
      paired: share of the people whose pairs count as such. The others are left out; but a method with a discriminator has half of every
        batch of them, and is not told which of their acquired and high-resolution slices belong together.
      unpaired: a folder of scans that have no truth, to which a method with a discriminator is adapted: half of every batch is of them.
      threads: that prepare batches.
    """

    volumes: Path | None = None
    labels: Path | None = None
    manifest: Path | None = None
    mixture: tuple[SourceConfig, ...] = ()
    acquisitions: tuple[Acquisition, ...] = ()
    voxel_size: float = pydantic.Field(1.0, ge=0.1, le=10)
    acquisition: Acquisition = named_acquisition("1.5T")
    interpolation: Literal["linear", "cubic", "kspace"] = "cubic"
    acquired: tuple[float, float, float] | None = None
    crop: int = pydantic.Field(128, ge=8)
    subjects: int = pydantic.Field(1000, ge=1)
    contrast: Literal["random", "T1w", "T2w", "PDw", "FLAIR"] = "random"
    draws: int = pydantic.Field(256, ge=1)
    window: int = pydantic.Field(4, ge=1)
    maps: tuple[MapName, ...] = ()
    carries: tuple[Literal["bias", "gradient"], ...] = ()
    augment: bool | AugmentConfig = True
    paired: float = pydantic.Field(1.0, gt=0, le=1)
    unpaired: Path | None = None
    threads: int = pydantic.Field(2, ge=0)

    @pydantic.model_validator(mode="after")
    def _one_set(self) -> "DataConfig":
        named = [name for name in ("volumes", "labels", "manifest", "mixture") if getattr(self, name)]
        if self.mixture and (self.maps or self.carries or self.unpaired or self.paired < 1):
            raise ValueError("mixture: its slices have no maps, and all are pairs: leave out maps, carries, paired and unpaired")
        if not self.acquisitions and not all(source.acquisitions for source in self.mixture):
            raise ValueError("a source of the mixture names no acquisitions: give it some, or give acquisitions for all that name none")
        if self.acquisitions and not self.mixture:
            raise ValueError("acquisitions are of a mixture: name one as acquisition")
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} name {len(named)} sets: keep one of them, and leave out the rest or make it null")
        if self.contrast == "FLAIR" and self.labels is None:
            raise ValueError("contrast FLAIR is rendered from label maps only: give labels, or another contrast")
        if self.carries and self.volumes:
            raise ValueError("carries is of rendered heads, and volumes names others, which show what they show: set carries: []")
        if len(set(self.maps)) < len(self.maps):
            raise ValueError(f"maps names one of them twice: {', '.join(self.maps)}")
        return self

    @pydantic.model_validator(mode="after")
    def _shares(self) -> "DataConfig":
        if self.draws % self.window:
            raise ValueError(f"draws must be a multiple of window, got {self.draws} and {self.window}")
        return self

    @property
    def range_acquired(self) -> tuple[float, float] | None:
        """mm, finest and coarsest voxel sides of the scans that a mixture simulates; None where there is none."""
        sizes = [size for of in self.all_acquisitions for size in of.voxel_size]
        ends = [end for size in sizes for end in (size if isinstance(size, tuple) else (size,))]
        return (min(ends), max(ends)) if self.mixture else None

    @property
    def all_acquisitions(self) -> tuple[Acquisition, ...]:
        """Each that low-resolution sides are simulated as, once."""
        of_mixture = (of for source in self.mixture for of in source.acquisitions or self.acquisitions)
        return tuple(dict.fromkeys(of_mixture)) if self.mixture else (self.acquisition,)


Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OptimizerSettings(Strict):
    """AdamW with linear warm-up, then constant or falling as half a cosine to `final` times the rate."""

    learning_rate: float = pydantic.Field(1e-4, gt=0)
    warmup_steps: int = pydantic.Field(100, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    final: float = pydantic.Field(0.01, ge=0, le=1)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: float = pydantic.Field(1e-8, gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    clip_norm: float | None = pydantic.Field(1.0, gt=0)


class OptimizerConfig(OptimizerSettings):
    """Attributes:
    discriminator: the settings of that player, in a method that has one; null: those of the others. What it leaves out has the defaults
      above, not the others' settings.
    """

    discriminator: OptimizerSettings | None = None


class TrainConfig(Strict):
    """How long and how often. `batch_size` is over all devices; `accumulate` splits it into that many passes.

    `tensorboard` writes the scalars of metrics.jsonl under tensorboard/ too; needs `pip install 'jaxsr[tracking]'`.
    """

    steps: int = pydantic.Field(100_000, ge=1)
    batch_size: int = pydantic.Field(16, ge=1)
    accumulate: int = pydantic.Field(1, ge=1)
    ema: float = pydantic.Field(0.999, ge=0, lt=1)
    log_every: int = pydantic.Field(50, ge=1)
    checkpoint_every: int = pydantic.Field(1000, ge=1)
    keep_checkpoints: int = pydantic.Field(3, ge=1)
    tensorboard: bool = False

    @pydantic.model_validator(mode="after")
    def _divides(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}")
        return self


class MeshConfig(Strict):
    """Devices along each axis; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    @pydantic.model_validator(mode="after")
    def _sizes(self) -> "MeshConfig":
        sizes = [self.data, self.fsdp, self.tensor, self.expert]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"sizes must be at least 1, and one of them may be -1, got data, fsdp, tensor, expert = {sizes}")
        return self


class Experiment(Strict):
    """Attributes: see each part; `precision` is that of the computation. What is trained is float32 always, what is not is held as it is
    used."""

    method: MethodConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    precision: Literal["f32", "bf16"] = "f32"
    seed: int = pydantic.Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _crop_fits(self) -> "Experiment":
        multiple = self.method.multiple
        if self.data.crop % multiple:
            raise ValueError(f"data.crop must be a multiple of {multiple} for this network, got {self.data.crop}")
        missing = [name for name in getattr(self.method, "maps", ()) if name not in self.data.maps]
        if missing:
            raise ValueError(f"data.maps must have {' and '.join(missing)}, by which the method is guided, got {list(self.data.maps)}")
        if self.optimizer.discriminator and not getattr(self.method, "players", None):
            raise ValueError("optimizer.discriminator: this method trains none; leave it out, or make it null")
        if self.data.unpaired and not getattr(self.method, "unpaired", False):
            raise ValueError("data.unpaired: scans without a truth teach this method nothing, as it has no discriminator: make it null")
        if self.data.unpaired and self.data.maps:
            raise ValueError(f"data.unpaired: scans without a truth have no maps either: set data.maps to [], got {list(self.data.maps)}")
        if self.data.unpaired and self.data.paired < 1:
            raise ValueError("data.unpaired and data.paired below 1 are two ways to have slices without a pair: leave out one of them")
        if check := getattr(self.method, "check", None):
            check(self)
        return self


# What may change between the parts of one run without making it another experiment; the number of steps only if no rate or curriculum
# depends on it.
FREE_ON_RESUME = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.tensorboard",
    "mesh.",
    "data.threads",
    "method.sampling_steps",
    "method.sharp_steps",
    "method.weights.",  # their SHA-256 are compared instead
)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in the YAML file `path`, with `a.b=c` overrides on top; ConfigError with everything that is wrong."""
    return load(path, overrides, Experiment)
