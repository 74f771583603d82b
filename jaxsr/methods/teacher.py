"""The teacher: guided diffusion in the latents of a frozen autoencoder [teacher paper §II-A, Algorithms 1 and 2; Rombach et al. 2022].

    z_0 = s E_1(x)                                                                         s: `autoencoder.latent_scale`
    train      mean w (ε − U(z_t, t; E_1(y), E_2(y), b, g))²  +  λ mean w' (x − D(ẑ_0 / s))²      [Eqs. 5 and 1; Algorithm 1]
    sample     from pure noise by DDIM, then D                                                    [Eq. 6; Algorithm 2]

x is the target and y the low-resolution slice, b and g the bias field and gradient nonlinearity of the target's acquisition. y enters
twice, as in Zero-1-to-3: its latents, the mode of E_1(y) and not scaled, beside z_t as channels; and what CLIP's vision transformer E_2
sees in it as the context of the attention. b is added to the UNet's features on the way down, g on the way up, through convolutions that
start at zero: before training, the guided network is the unguided one. Each is left out of a training slice at random, so that one network
answers with both, either or none. g is told as displacement, or as the logarithm of its Jacobian determinant.

w is 1, or min-SNR-γ; w' = min(1, SNR), as ẑ_0 has 1 / SNR times the squared error of ε̂. With λ = 0 nothing is decoded in training.
E_1 and D are frozen, and so is E_2, unless it is trained from the start: what they make of a slice can be stored once (`jaxsr prepare
--encode`), and then neither encoder is computed in training.
"""

import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, Weighting, add_noise, snr_weight, target, to_x0, x0_loss_weight
from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import Level, level_at
from jaxsr.losses.pixels import squared_errors
from jaxsr.methods.autoencoder import LatentsConfig
from jaxsr.methods.base import LossOutput, Part, Precomputed, Request, Sampler, ScheduleConfig, UpscaleOutput, Variables, check_sampling
from jaxsr.methods.condition import MAP_CHANNELS, UNIT, Batch, Condition
from jaxsr.methods.teacher_networks import GUIDES, GuidanceConfig, ImageEncoderConfig, TeacherWeights, UNetConfig
from jaxsr.models.autoencoder import Gaussian
from jaxsr.models.clip import ClipOutput, VisionTransformer, clip_image, patches_of_slice
from jaxsr.models.guidance import GuidancePyramid
from jaxsr.models.unet import LatentUNet
from jaxsr.nn.convolution import dense
from jaxsr.nn.parts import in_parts


class TeacherConfig(Strict):
    """The teacher's recipe.

    Attributes:
      image_encoder: E_2, or null: the attention has no context.
      spatial: what of y stands beside z_t: its latents, or 'vit', the patches of E_2, brought to the latents' channels and resolution.
      guidance: null leaves it out.
      weighting: of the loss: none (Eq. 5), or min_snr with `gamma`.
      lambda_rec: λ; 0 decodes nothing in training. The paper does not give it.
      x0_loss_weight: w' above: 'snr', or 'none' for 1.
      sampling_steps, eta: the default of `upscale`.
    """

    kind: Literal["teacher"] = "teacher"
    autoencoder: LatentsConfig = LatentsConfig()
    unet: UNetConfig = UNetConfig()
    image_encoder: ImageEncoderConfig | None = ImageEncoderConfig()
    spatial: Literal["autoencoder", "vit"] = "autoencoder"
    guidance: GuidanceConfig | None = GuidanceConfig()
    schedule: ScheduleConfig = ScheduleConfig(kind="scaled_linear", steps=5000, beta_start=8.5e-4, beta_end=1.2e-2, reference_steps=1000)
    prediction: Prediction = "eps"
    weighting: Weighting = "none"
    gamma: float = Field(5.0, gt=0)
    lambda_rec: float = Field(0.0, ge=0)
    x0_loss_weight: Literal["snr", "none"] = "snr"
    sampling_steps: int = 50
    eta: float = Field(0.0, ge=0, le=1)
    weights: TeacherWeights = TeacherWeights()

    @model_validator(mode="after")
    def _goes_together(self) -> "TeacherConfig":
        check_sampling(self.schedule, self.prediction, sampling_steps=self.sampling_steps)
        if self.spatial == "vit" and self.image_encoder is None:
            raise ValueError("spatial 'vit' is made of the image encoder's patches: give image_encoder, or spatial: autoencoder")
        if self.image_encoder is None and self.weights.image_encoder:
            raise ValueError("weights.image_encoder names one, and image_encoder is null: make both null, or give its sizes")
        if self.guidance and self.autoencoder.multiple < 2:
            raise ValueError("guidance needs an autoencoder that reduces the resolution: give it two multipliers or more")
        return self

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: one halving between levels, of the autoencoder and of the UNet."""
        return self.autoencoder.multiple * 2 ** (len(self.unet.multipliers) - 1)

    @property
    def maps(self) -> tuple[str, ...]:
        """What training slices must have beside high and low."""
        return self.guidance.maps if self.guidance else ()

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Teacher":
        return Teacher(self, dtype)


class Shown(NamedTuple):
    """What the UNet is shown of a slice besides z_t and t: nothing of it changes from one sampling step to the next."""

    spatial: Array  # [B, h, w, c]
    context: Array | None  # [B, N, D]
    guidance: dict[str, tuple[Array, ...]]  # b, g → residuals, one a level


class Teacher:
    """The recipe of the equations above; a frozen config in, pure functions out.

    Parameters are those of `unet`, and as far as the config has them `guidance` (a pyramid a map), `context`, `spatial` (projections of
    the image encoder's output) and `image_encoder`; frozen are `autoencoder` and, unless it is trained, `image_encoder`.
    """

    def __init__(self, config: TeacherConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.schedule = config.schedule.build()
        self.autoencoder = config.autoencoder.build(dtype)
        latent = config.autoencoder.network.latent
        self.unet = LatentUNet(**dict(config.unet), channels=latent, dtype=dtype)
        self.multiple = config.multiple
        self.default_request = Request(config.sampling_steps, config.eta)
        self.most_steps = config.schedule.steps
        self.guides = config.guidance.guides if config.guidance else {}
        self.pyramids = {
            name: GuidancePyramid(
                config.unet.width,
                config.unet.multipliers,
                config.autoencoder.multiple,
                config.guidance.width,
                config.guidance.groups,
                dtype,
            )
            for name in self.guides
            if config.guidance
        }
        self.projections: dict[str, nn.Dense] = {}
        if encoder := config.image_encoder:
            sizes = {name: getattr(encoder, name) for name in ("patch", "width", "layers", "heads", "projection", "remat")}
            self.image_encoder = VisionTransformer(**sizes, dtype=dtype)
            self.projections["context"] = dense(config.unet.context_width, identity=True)
            if config.spatial == "vit":
                self.projections["spatial"] = dense(latent, identity=True)

    def init(self, key: Array, batch: Batch) -> Variables:
        keys = dict(zip(("unet", "image_encoder", "context", "spatial", *GUIDES), jax.random.split(key, 6), strict=True))
        size, height, width = self._shape(batch)
        factor, encoder = self.autoencoder.multiple, self.config.image_encoder
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        latents = zeros((size, height // factor, width // factor, 2 * self.config.autoencoder.network.latent))
        context = zeros((size, 1, self.config.unet.context_width)) if encoder else None
        params: dict[str, Any] = {"unet": self.unet.init(keys["unet"], latents, zeros(size), context)["params"]}
        if encoder and encoder.train:
            params["image_encoder"] = self.image_encoder.init(keys["image_encoder"], zeros((size, encoder.side, encoder.side, 3)))["params"]
        for name, projection in self.projections.items():
            params[name] = projection.init(keys[name], zeros((size, 1, self._features(name))))["params"]
        if self.pyramids:
            params["guidance"] = {
                name: pyramid.init(keys[name], zeros((size, height, width, MAP_CHANNELS[self.guides[name]])), zeros(size))["params"]
                for name, pyramid in self.pyramids.items()
            }
        return {"params": params, "stats": {}}

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        def shapes(key: Array) -> dict[str, Any]:
            slices = jnp.zeros((1, self.autoencoder.multiple, self.autoencoder.multiple, 1))
            found = {"autoencoder": self.autoencoder.init(key, Batch(slices, slices))["params"]}
            encoder = self.config.image_encoder
            if encoder and not encoder.train:
                found["image_encoder"] = self.image_encoder.init(key, jnp.zeros((1, encoder.side, encoder.side, 3)))["params"]
            return found

        found: dict[str, Any] = jax.eval_shape(shapes, jax.random.key(0))
        if batch is None or batch.latents is None:
            return found
        return {"autoencoder": {"decoder": found["autoencoder"]["decoder"]}} if self.config.lambda_rec else {}

    def precomputed(self, size: int) -> Precomputed:
        encoder, latent, side = self.config.image_encoder, self.config.autoencoder.network.latent, size // self.autoencoder.multiple
        image = (size, size, 1)
        shapes: dict[str, tuple[int, ...]] = {"latents": (side, side, 2 * latent)}
        if self.config.spatial == "autoencoder":
            shapes["low_latents"] = (side, side, latent)
        if encoder and encoder.train:
            shapes["low"] = image
        elif encoder:
            if encoder.context == "pooled":
                shapes["pooled"] = (encoder.projection,)
            if encoder.context == "patches" or self.config.spatial == "vit":
                shapes["tokens"] = (1 + encoder.patches, encoder.width)
        return Precomputed("encoded", shapes | ({"high": image} if self.config.lambda_rec else {}))

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        config = self.config
        purposes = ("time", "noise", "latents", *GUIDES)
        draw = {name: jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i, name in enumerate(purposes)}
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.schedule.steps + 1))(draw["time"])
        level = level_at(self.schedule, t)

        if batch.latents is None:
            posterior = self.autoencoder.posterior(self._autoencoder(variables), batch.high)
        else:
            posterior = Gaussian.of(batch.latents)
        z0 = self.config.autoencoder.latent_scale * posterior.sample(draw["latents"])
        noise = draw_noise(draw["noise"], 0, z0.shape[1:])
        z_t = add_noise(z0, noise, level)
        present = {name: self._present(draw[name]) for name in self.pyramids}
        output = self._denoise(variables, self._show(variables, batch, present), z_t, level)

        weight = snr_weight(level, config.weighting, config.gamma, config.prediction)
        error = squared_errors(output, target(config.prediction, z0, noise, level))
        loss = (weight * error).mean()  # Eq. 5
        metrics = {"denoising": error.mean()}
        if config.lambda_rec:
            estimate = to_x0(config.prediction, output, z_t, level)
            errors = self.autoencoder.errors(self._autoencoder(variables), estimate, batch.high)
            weighted = (errors * (x0_loss_weight(level) if config.x0_loss_weight == "snr" else 1)).mean()  # Eq. 1
            metrics["reconstruction"] = weighted
            loss += config.lambda_rec * weighted
        return LossOutput(loss, metrics, variables["stats"])

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        return UpscaleOutput(self.sampler(variables, condition).draw(keys, request)[1], {})

    def sampler(self, variables: Variables, condition: Condition) -> Sampler:
        size, height, width = condition.low.shape[:3]
        factor = self.autoencoder.multiple
        present = {name: jnp.full(size, float(getattr(condition, self.guides[name]) is not None)) for name in self.pyramids}
        return Sampler(
            self.schedule,
            self.config.prediction,
            functools.partial(self._denoise, variables, self._show(variables, condition, present)),
            (height // factor, width // factor, self.config.autoencoder.network.latent),
            functools.partial(in_parts, functools.partial(self.autoencoder.decode, self._autoencoder(variables))),
        )

    def parts(self, size: int) -> dict[str, Part]:
        def shape(*dimensions: int) -> Any:
            return jax.ShapeDtypeStruct((1, *dimensions), jnp.float32)

        image, side, encoder = shape(size, size, 1), size // self.autoencoder.multiple, self.config.image_encoder
        params = jax.eval_shape(self.init, jax.random.key(0), Batch(image, image))["params"] | self.frozen()
        tokens = 1 if not encoder or encoder.context == "pooled" else 1 + encoder.patches
        inputs = (shape(side, side, 2 * self.config.autoencoder.network.latent), shape(), shape(tokens, self.config.unet.context_width))
        parts = {"denoiser": Part(self.unet.apply, {"params": params["unet"]}, inputs)}
        for name, pyramid in self.pyramids.items():
            parts[f"guidance by {name}"] = Part(
                pyramid.apply, {"params": params["guidance"][name]}, (shape(size, size, MAP_CHANNELS[self.guides[name]]), shape())
            )
        parts["autoencoder"] = Part(self._reconstruct, {"params": params["autoencoder"]}, (image,))
        if encoder:
            seen = shape(encoder.side, encoder.side, 3)
            parts["image encoder"] = Part(self.image_encoder.apply, {"params": params["image_encoder"]}, (seen,))
        for name, projection in self.projections.items():
            rows = shape(tokens if name == "context" else 1 + encoder.patches, self._features(name)) if encoder else shape()
            parts[f"projection to {name}"] = Part(projection.apply, {"params": params[name]}, (rows,))
        return parts

    def _reconstruct(self, variables: Variables, image: Array) -> Array:
        with jax.named_scope("encoder"):
            latents = self.autoencoder.encode(variables, image)
        with jax.named_scope("decoder"):
            return self.autoencoder.decode(variables, latents)

    def _denoise(self, variables: Variables, shown: Shown, z_t: Array, level: Level) -> Array:
        """What the UNet says of `z_t`."""
        down, up = (shown.guidance.get(name) for name in GUIDES)
        x = jnp.concatenate([z_t, shown.spatial], axis=-1)
        return jnp.asarray(self.unet.apply({"params": variables["params"]["unet"]}, x, level.time, shown.context, down, up))

    def _show(self, variables: Variables, condition: Condition | Batch, present: dict[str, Array]) -> Shown:
        """`present`: map → 1 or 0 `[B]`. What `condition`, a batch of an encoded set, has of the encoders is taken as it is."""
        params, encoder = variables["params"], self.config.image_encoder
        context = tokens = None
        if encoder:
            seen = self._seen(variables, encoder, condition)
            tokens = seen.tokens
            context = self._projected(params, "context", seen.pooled[:, None] if encoder.context == "pooled" else tokens)
        if self.config.spatial == "vit":
            _, *sides = self._shape(condition)
            spatial = patches_of_slice(self._projected(params, "spatial", tokens), [side // self.autoencoder.multiple for side in sides])
        elif isinstance(condition, Batch) and condition.low_latents is not None:
            spatial = condition.low_latents
        else:
            spatial = self.autoencoder.posterior(self._autoencoder(variables), condition.low).mode
        shape = self._shape(condition)
        guidance = {name: self._guide(params, name, condition, present[name], shape) for name in self.pyramids}
        return Shown(spatial, context, guidance)

    def _seen(self, variables: Variables, encoder: ImageEncoderConfig, condition: Condition | Batch) -> ClipOutput:
        """What E_2 sees; of an encoded set only what is stored of it."""
        if isinstance(condition, Batch) and (condition.pooled is not None or condition.tokens is not None):
            return ClipOutput(condition.tokens, condition.pooled)  # type: ignore[arg-type]
        params = variables["params"]["image_encoder"] if encoder.train else variables["frozen"]["image_encoder"]
        return ClipOutput(*self.image_encoder.apply({"params": params}, clip_image(condition.low, encoder.side)))

    def _shape(self, condition: Condition | Batch) -> tuple[int, int, int]:
        """Number, height and width of the slices."""
        if isinstance(condition, Batch) and condition.latents is not None:
            size, *sides = condition.latents.shape[:3]
            height, width = (side * self.autoencoder.multiple for side in sides)
            return size, height, width
        return condition.low.shape[0], condition.low.shape[1], condition.low.shape[2]

    def _guide(
        self, params: Variables, name: str, condition: Condition | Batch, present: Array, shape: tuple[int, int, int]
    ) -> tuple[Array, ...]:
        field = getattr(condition, self.guides[name])
        if field is None:
            field = jnp.zeros((*shape, MAP_CHANNELS[self.guides[name]]))
        field = field / UNIT[self.guides[name]]
        residuals: tuple[Array, ...] = self.pyramids[name].apply({"params": params["guidance"][name]}, field, present)  # type: ignore[assignment]
        return residuals

    def _present(self, keys: Array) -> Array:
        """1 `[B]`, or 0 where a training slice goes without the map."""
        dropout = self.config.guidance.dropout if self.config.guidance else 0.0
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout))(keys).astype(jnp.float32)

    def _features(self, name: str) -> int:
        """Of the tokens that are projected to `name`."""
        encoder = self.config.image_encoder
        assert encoder
        return encoder.projection if (name, encoder.context) == ("context", "pooled") else encoder.width

    def _projected(self, params: Variables, name: str, tokens: Array | None) -> Array:
        return jnp.asarray(self.projections[name].apply({"params": params[name]}, tokens))

    def _autoencoder(self, variables: Variables) -> Variables:
        return {"params": variables["frozen"]["autoencoder"]}
