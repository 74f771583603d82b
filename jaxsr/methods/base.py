"""What a method is: one paper's recipe, as pure functions over arrays.

A recipe knows no optimiser, no mesh, no file; the trainer and the upscaling engine know no paper. They meet in the types of this file.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jax import Array

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction
from jaxsr.diffusion.sampling import Denoiser, Observer, Samples, sample
from jaxsr.diffusion.schedule import Schedule, make_schedule
from jaxsr.methods.condition import Batch, Condition

# {"params": …, "stats": …, "frozen": …}: what training changes, running statistics, and networks trained elsewhere, which stay as they are.
Variables = dict[str, Any]


class Request(NamedTuple):
    """How to upscale: hashable, a static argument of the compiled program.

    Attributes:
      steps: sampling steps, S.
      eta: 0 deterministic … 1 ancestral.
      to_mm: voxel size of the output, where one was asked for.
      from_mm: of the input, as it lies in the plane of the slices; for methods that go between voxel sizes.
      routing: of a mixture: 'all' experts, weighed by its gate, or 'top1', the one of highest weight alone.
      expert: this one alone, from 0, whatever the gate says; the rest do not run.
    """

    steps: int
    eta: float = 0.0
    from_mm: float | None = None
    to_mm: float | None = None
    routing: Literal["all", "top1"] = "all"
    expert: int | None = None


def check_sampling(schedule: "ScheduleConfig", prediction: Prediction, **steps: int) -> None:
    """ValueError, for a config, where `steps`, by key, are more than the schedule has, or ε is to be predicted from pure noise."""
    for name, value in steps.items():
        if not 1 <= value <= schedule.steps:
            raise ValueError(f"{name} must be 1…{schedule.steps} (the schedule's steps), got {value}")
    if schedule.zero_terminal_snr and prediction == "eps":
        raise ValueError("zero_terminal_snr leaves no signal at t = T, from which prediction 'eps' cannot recover x0: use 'v' or 'x0'")


class LossOutput(NamedTuple):
    """A scalar to minimise, scalars to log, and the statistics after this batch.

    Statistics are floats and linear in the batch, as running means are: made of those from before the batch, they are the mean of what its
    equal parts would make of those. Where gradients are accumulated over parts, that is how they are computed.
    """

    loss: Array
    metrics: dict[str, Array]
    stats: dict[str, Any]


class UpscaleOutput(NamedTuple):
    """The image `[B, H, W, 1]` in the window of the condition, and values to report, `[B]` each: one a slice, so fillers do not count."""

    image: Array
    metrics: dict[str, Array]


class Precomputed(NamedTuple):
    """What a loss takes of a set that other networks made for it, beside the config's `maps`.

    Attributes:
      kind: 'encoded' (`jaxsr prepare --encode`) or 'distilled' (`jaxsr distill`).
      shapes: of one slice, by the names of a `Batch`.
      required: there is no training without such a set.
    """

    kind: Literal["encoded", "distilled"]
    shapes: dict[str, tuple[int, ...]]
    required: bool = False


class Sampler(NamedTuple):
    """How a method samples slices that are all there is to be known of: what `jaxsr.diffusion.sampling.sample` takes.

    Attributes:
      shape: of what is diffused, (H, W, C).
      decode: x̂_0 `[B, *shape]` → the image `[B, H, W, 1]`.
    """

    schedule: Schedule
    prediction: Prediction
    denoise: Denoiser
    shape: tuple[int, ...]
    decode: Callable[[Array], Array]
    bounds: Callable[[Array], Array] | None = None

    def draw(self, keys: Array, request: Request, observer: Observer | None = None) -> tuple[Samples, Array]:
        """One sample for each of `keys` `[B]`, and its image."""
        samples = sample(
            self.schedule,
            self.denoise,
            keys,
            self.shape,
            steps=request.steps,
            prediction=self.prediction,
            eta=request.eta,
            bounds=self.bounds,
            observer=observer,
        )
        return samples, self.decode(samples.x0)


class Part(NamedTuple):
    """One network of a method, for counting: `apply(variables, *inputs)`, with the shapes that one evaluation of one slice has."""

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]


class Method(Protocol):
    """A recipe. `batch` in `init` needs shapes only; `keys` are `[B]`, one a slice: results do not depend on how slices are batched."""

    @property
    def multiple(self) -> int:
        """Slice sides are padded to a multiple of this."""
        ...

    @property
    def default_request(self) -> Request: ...

    @property
    def most_steps(self) -> int:
        """Sampling steps that `Request.steps` may ask for; 1 for a method that does not sample, and then `eta` means nothing either."""
        ...

    def init(self, key: Array, batch: Batch) -> Variables:
        """`params` and `stats`."""
        ...

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        """Shapes of `variables["frozen"]`, by network; {} for most methods. Its config's `weights` say where each is.

        Args:
          batch: None: what `upscale` computes with; else what the loss of such a batch does, which may spare encoders or need a teacher.
        """
        ...

    def precomputed(self, size: int) -> Precomputed | None:
        """What the loss takes of slices of `size`² pixels; None for a method that learns from images only."""
        ...

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        """`progress`: how much of the run is done, a float32 scalar from 0 to 1: what a curriculum goes by."""
        ...

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput: ...

    def parts(self, size: int) -> dict[str, Part]: ...


@runtime_checkable
class Segmenter(Protocol):
    """A method that sees in a slice what is where, before it makes anything of it."""

    tissues: tuple[str, ...]
    """Names of the classes, the first of all that is none; () where it has no extractor."""

    def segment(self, variables: Variables, condition: Condition) -> Array:
        """How likely each pixel is each of them, `[B, H, W, K]`, of sum one."""
        ...


MAIN = "main"  # the player whose parameters are nobody else's


@runtime_checkable
class Adversarial(Protocol):
    """A method of several players, each with an optimiser of its own, all in one step.

    Its loss is the sum of theirs, made so that none has a gradient by another's parameters: `stop_gradient` is what stands between them.
    """

    players: Mapping[str, str]
    """Network → player, of those that are not the main player's."""


class Explanation(NamedTuple):
    """Why a slice was upscaled as it was.

    Attributes:
      weights: of each expert, `[B, K]`.
      attention: of each expert's query over the slice, `[B, H, W, K]`, of mean one over a slice.
      local: weights at each pixel, `[B, H, W, K]`, of which `weights` are the means.
    """

    weights: Array
    attention: Array
    local: Array


@runtime_checkable
class Mixture(Protocol):
    """A method whose slices may each go to one of several experts: who upscales a volume groups them, so that no expert runs in vain."""

    experts: tuple[str, ...]

    def route(self, variables: Variables, condition: Condition) -> Array:
        """The expert of each slice, int `[B]`, for requests of 'top1'."""
        ...

    def explain(self, variables: Variables, condition: Condition) -> Explanation: ...


class ScheduleConfig(Strict):
    """A noise schedule; see `jaxsr.diffusion.schedule.make_schedule`."""

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 2000
    beta_start: float = 1e-6
    beta_end: float = 1e-2
    reference_steps: int = 2000
    rescale: bool = True
    zero_terminal_snr: bool = False

    def build(self) -> Schedule:
        cosine = self.kind == "cosine"
        return make_schedule(
            self.kind,
            self.steps,
            beta_start=None if cosine else self.beta_start,
            beta_end=None if cosine else self.beta_end,
            reference_steps=self.reference_steps,
            rescale=self.rescale,
            zero_terminal_snr=self.zero_terminal_snr,
        )
