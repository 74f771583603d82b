"""The VQ-VAE whose latents the mixture of experts works in [MoEDiff-SR §II-A, §III; van den Oord et al. 2017, Eq. 3].

    L = mean (x − D(z_q))² + β · mean (z − sg[z_q])²,      z = E_1(x, b, g)            β: `commitment`; sg: no gradient passes

z_q is the code nearest to z, and the gradient by it is taken for one by z. The codebook is a running mean of what comes to each code
(`jaxsr.models.vqvae`), a statistic of the training state; codes to which hardly anything comes any more are put where vectors of the
batch are, before those are quantised. New codes are of that kind, so the first batch makes the codebook.

b, the logarithm of the target's bias field, and g, as the logarithm of its gradient nonlinearity's Jacobian determinant, are channels of
the input beside the slice, and zeros where they are not given: latents are of the target, which is there in training only, with its maps.

    z_0 = s z,      x̂ = D(c(ẑ_0 / s))                                                              s: `latent_scale`; c: the nearest code

is what the mixture diffuses, and what becomes of its answer: latents are taken before they are quantised, and are quantised before they are
decoded. Of this network the paper gives the base width, the codes and their numbers, and s; the rest is that of latent diffusion's.

As a method of its own it reconstructs whatever it is shown, as the autoencoder does.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.losses.pixels import mean_squared_error
from jaxsr.methods.autoencoder import check_sizes, psnr, to_grey
from jaxsr.methods.base import LossOutput, Part, Request, UpscaleOutput, Variables
from jaxsr.methods.condition import UNIT, Batch, Condition
from jaxsr.models.autoencoder import Decoder
from jaxsr.models.vqvae import Codebook, VqEncoder, dead, new_codebook, perplexity, quantise, restarted, straight_through, updated


class VqvaeNetworkConfig(Strict):
    """Attributes of `jaxsr.models.vqvae.VqEncoder` and of `jaxsr.models.autoencoder.Decoder`; the defaults are the paper's as far as it
    gives them: 88,840,577 parameters, with two maps.

    Attributes:
      channels: of the image; slices are repeated over them, and answers averaged.
      embedding: numbers in a code, D.
      codes: in the codebook, K.
      remat: computes activations again for the gradient instead of keeping them: a third more work, a fraction of the memory.
    """

    channels: int = Field(1, ge=1)
    width: int = Field(128, ge=1)
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = Field(2, ge=1)
    embedding: int = Field(512, ge=1)
    codes: int = Field(1024, ge=2)
    groups: int = Field(32, ge=1)
    remat: bool = False

    @model_validator(mode="after")
    def _norms_divide(self) -> "VqvaeNetworkConfig":
        check_sizes(self.width, self.multipliers, self.groups)
        return self


class QuantisedConfig(Strict):
    """The VQ-VAE's recipe, as it stands in a method that works in its latents.

    Attributes:
      maps: what of the target's scanner is shown beside the slice, a channel each, in this order.
      commitment: β above.
      decay: γ of the codebook's running means, a step.
      restart: codes to which less than this part of their fair share, 1 / codes, comes start anew; 0: none does. At a decay of 0.99 a new
        code to which nothing comes is at 0.1 of it after 229 steps. Much higher takes codes that serve, if rarely, for dead; much lower
        leaves the codebook where the first batches were for longer.
      latent_scale: s above. It has no part in training the VQ-VAE.
    """

    kind: Literal["vqvae"] = "vqvae"
    network: VqvaeNetworkConfig = VqvaeNetworkConfig()
    maps: tuple[Literal["bias", "jacobian"], ...] = ("bias", "jacobian")
    commitment: float = Field(0.25, ge=0)
    decay: float = Field(0.99, ge=0, lt=1)
    restart: float = Field(0.1, ge=0, lt=1)
    latent_scale: float = Field(0.2, gt=0)

    @model_validator(mode="after")
    def _maps_once(self) -> "QuantisedConfig":
        if len(set(self.maps)) < len(self.maps):
            raise ValueError(f"maps names one of them twice: {', '.join(self.maps)}")
        return self

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: one halving between levels."""
        return 2 ** (len(self.network.multipliers) - 1)

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Vqvae":
        return Vqvae(self, dtype)


class VqvaeWeights(Strict):
    """Attributes:
    vqvae: what training starts from, codebook and all: a run directory or an exported file.
    """

    vqvae: Path | None = None


class VqvaeConfig(QuantisedConfig):
    """The VQ-VAE's recipe, as a method of its own."""

    weights: VqvaeWeights = VqvaeWeights()

    def check(self, experiment: Any) -> None:
        """ValueError of the `Experiment` around it, where codes would start anew in passes whose means are taken."""
        if experiment.train.accumulate > 1 and self.restart:
            raise ValueError(
                "train.accumulate and method.restart: each pass would give a dead code a new place of its own, and it would get their "
                "middle; set accumulate to 1, and spread large batches over devices, or restart to 0"
            )


class Vqvae:
    """The recipe of the equations above; a frozen config in, pure functions out.

    Parameters are `{"encoder": …, "decoder": …}`, statistics those of a `Codebook`, `{"usage": …, "sums": …}`.
    """

    def __init__(self, config: QuantisedConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        shared = {name: getattr(config.network, name) for name in ("width", "multipliers", "blocks", "groups", "remat")}
        self.encoder = VqEncoder(**shared, embedding=config.network.embedding, dtype=dtype)
        self.decoder = Decoder(**shared, channels=config.network.channels, dtype=dtype)
        self.multiple = config.multiple
        self.default_request = Request(steps=1)
        self.most_steps = 1

    def init(self, key: Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, 3)
        image = self._seen(batch.high, batch.bias, batch.jacobian)
        encoder = self.encoder.init(keys[0], image)
        z = jax.eval_shape(self.encoder.apply, encoder, image)
        decoder = self.decoder.init(keys[1], jnp.zeros(z.shape, z.dtype))
        codebook = new_codebook(keys[2], self.config.network.codes, self.config.network.embedding)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}, "stats": codebook._asdict()}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        config, image = self.config, self._to_channels(batch.high)
        before, least = Codebook(**variables["stats"]), config.restart / config.network.codes

        z = self._encoded(variables, self._seen(batch.high, batch.bias, batch.jacobian))
        vectors = jax.lax.stop_gradient(z)
        codebook = restarted(before, vectors, keys[0], least)
        z_q, indices = quantise(vectors, codebook)
        output = self._decoded(variables, straight_through(z, z_q))
        error = mean_squared_error(output, image)
        commitment = mean_squared_error(z, z_q)
        spread, used = vectors.std(), perplexity(indices, config.network.codes)
        metrics = {
            "reconstruction": error,
            "psnr": psnr(to_grey(output), to_grey(image)),
            "commitment": commitment,
            "perplexity": used,
            "perplexity_share": used / config.network.codes,
            "restarted": dead(before, least).sum().astype(jnp.float32),
            "latent_std": spread,
            "latent_std_scaled": config.latent_scale * spread,
        }
        stats = updated(codebook, vectors, indices, config.decay)._asdict()
        return LossOutput(error + config.commitment * commitment, metrics, stats)

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        latents = self.encode(variables, condition.low, condition.bias, condition.jacobian)
        return UpscaleOutput(self.decode(variables, latents), {})

    def encode(self, variables: Variables, image: Array, bias: Array | None = None, jacobian: Array | None = None) -> Array:
        """Slices and their maps, `[B, H, W, 1]` each → z_0, latents `[B, H / f, W / f, D]` times `latent_scale`, not quantised."""
        return self.config.latent_scale * self._encoded(variables, self._seen(image, bias, jacobian))

    def decode(self, variables: Variables, latents: Array) -> Array:
        """Latents times `latent_scale` → slices `[B, H, W, 1]`, of the codes nearest to them; the gradient passes by that choice."""
        z = latents.astype(jnp.float32) / self.config.latent_scale
        z_q, _ = quantise(jax.lax.stop_gradient(z), Codebook(**variables["stats"]))
        return to_grey(self._decoded(variables, straight_through(z, z_q)))

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        return {}

    def precomputed(self, size: int) -> None:
        return None

    def parts(self, size: int) -> dict[str, Part]:
        image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        variables = jax.eval_shape(self.init, jax.random.key(0), Batch(image, image))  # type: ignore[arg-type]
        encoder, decoder = ({"params": variables["params"][name]} for name in ("encoder", "decoder"))
        seen = jax.eval_shape(self._seen, image)
        z = jax.eval_shape(self.encoder.apply, encoder, seen)
        return {
            "encoder": Part(self.encoder.apply, encoder, (seen,)),
            "codebook": Part(lambda stats, z: quantise(z, Codebook(**stats)), variables["stats"], (z,)),
            "decoder": Part(self.decoder.apply, decoder, (z,)),
        }

    def _encoded(self, variables: Variables, seen: Array) -> Array:
        return jnp.asarray(self.encoder.apply({"params": variables["params"]["encoder"]}, seen))

    def _decoded(self, variables: Variables, z: Array) -> Array:
        return jnp.asarray(self.decoder.apply({"params": variables["params"]["decoder"]}, z))

    def _to_channels(self, image: Array) -> Array:
        return jnp.repeat(image, self.config.network.channels, axis=-1)

    def _seen(self, image: Array, bias: Array | None = None, jacobian: Array | None = None) -> Array:
        """What the encoder is shown, `[B, H, W, channels + maps]`."""
        given = {"bias": bias, "jacobian": jacobian}
        maps = [jnp.zeros_like(image) if (field := given[name]) is None else field / UNIT[name] for name in self.config.maps]
        return jnp.concatenate([self._to_channels(image), *maps], axis=-1)


def as_frozen(variables: Variables) -> dict[str, Any]:
    """Parameters and statistics as one network, which is how a VQ-VAE stands in another method's `variables["frozen"]`."""
    return {**variables["params"], **variables["stats"]}


def of_frozen(network: dict[str, Any]) -> Variables:
    """The inverse of `as_frozen`: what `Vqvae.encode` and `decode` take."""
    stats = {name: network[name] for name in Codebook._fields}
    return {"params": {name: tree for name, tree in network.items() if name not in stats}, "stats": stats}
