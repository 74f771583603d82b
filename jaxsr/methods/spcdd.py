"""SPCDD: a denoiser guided by what it finds in the slice itself, in place of maps of the scanner [SPCDD §3.3 to §3.5].

    x̃ = concat(y, a),  ĩ = h(y)                                     anatomy prior a and intensity modulation ĩ of the slice y
    x̂ = f(x̃; ĩ)                                                     one evaluation: no `schedule`, as in the paper's Table 1
    z_{t−1} from z_t and f(z_t, t, x̃; ĩ)                            sampled, in pixels or in latents: DDIM

    L = denoising + Σ_i λ_i mean w' L_i(x̂, x) + adversarial + α |ŷ_s − ŷ_t| + β mean (P Φ_s − Φ_t)²                     [Algorithm 1, Eq. 1]

L_i compare images: L1, gradients, histograms, local contrast, and Dice of what the extractor sees in x̂ and x. Where x̂ is sampled they act
on x̂_0, with w' = min(1, SNR). In distillation y_t and Φ_t are a fixed teacher's, of the same y, z_t and t; P, a learned 1×1 projection of
the student's features, is there only where the widths differ, so a student that equals its teacher has no loss.

Two players: a discriminator D sees x and x̂, and never which belong together. Slices whose pair is not known (`Batch.paired`) count where
no pair is needed: in D's game, in distillation, and in Dice, of what the extractor sees in x̂ and in y, without which D alone would have its
way with them. Where f is sampled they are shown pure noise at t = T, as z_t would tell it x. Of the sum of both players' losses neither has
a gradient by the other's parameters: that is what one optimiser step of both needs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.diffusion.process import add_noise, snr_weight, target, to_x0, x0_loss_weight
from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import Level, level_at
from jaxsr.losses.adversarial import discriminator_errors, generator_errors, r1_penalty
from jaxsr.losses.edges import gradient_errors
from jaxsr.losses.intensity import histogram_errors, local_contrast_errors, wasserstein_errors
from jaxsr.losses.overlap import dice_errors
from jaxsr.losses.pixels import ERRORS, absolute_errors, squared_errors
from jaxsr.methods.autoencoder import interleave, psnr_of
from jaxsr.methods.base import LossOutput, Part, Request, Sampler, UpscaleOutput, Variables
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.pixels import Pixels
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.spcdd_networks import Guided, Shown
from jaxsr.models.discriminator import PatchDiscriminator
from jaxsr.nn.convolution import dense
from jaxsr.nn.parts import in_parts

HISTOGRAMS = {"soft": histogram_errors, "sorted": wasserstein_errors}


class Noised(NamedTuple):
    """What training slices are denoised from, where the network is sampled.

    Attributes:
      z0: what is diffused, `[B, h, w, c]`, and noise likewise.
      z_t: of both, `[B, h, w, c]`, at `level`, `[B]`.
    """

    z0: Array
    noise: Array
    z_t: Array
    level: Level


class Spcdd:
    """The recipe of the equations above; a frozen config in, pure functions out.

    Parameters are those of `jaxsr.methods.spcdd_networks.Guided`, `discriminator` and `projection` as far as the config has them;
    frozen are `autoencoder` and, unless it is trained, `anatomy`, and in training `teacher`. The only statistics are those of spectral
    normalisation.
    """

    def __init__(self, config: SpcddConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.schedule = config.schedule.build() if config.schedule else None
        self.autoencoder = config.autoencoder.build(dtype) if config.autoencoder else None
        self.guided = Guided(config, self.autoencoder, self.schedule is not None, dtype)
        self.tissues = ("background", *config.prior.network.tissues) if config.prior else ()
        self.pixels = Pixels(config.residual_std, config.bound)
        self.discriminator = None
        if sizes := config.discriminator:
            self.discriminator = PatchDiscriminator(sizes.width, sizes.layers, sizes.spectral, dtype)
        self.only_to_train = ("discriminator", "projection", "spectral")
        self.players = {"discriminator": "discriminator"} if self.discriminator else {}
        self.teacher = self.projection = None
        if config.distill:
            self.teacher = Guided(config.distill.teacher, self.autoencoder, self.schedule is not None, dtype)
            if config.distill.beta and config.features != config.distill.teacher.features:
                self.projection = dense(config.distill.teacher.features)
        self.multiple = config.multiple
        self.default_request = Request(config.sampling_steps, config.eta) if self.schedule else Request(steps=1)
        self.most_steps = self.schedule.steps if self.schedule else 1

    def init(self, key: Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, 3)
        params, stats = self.guided.init(keys[0], batch.low), {}
        if self.config.prior and not self.config.prior.train:
            del params["anatomy"]
        if self.discriminator:
            found = self.discriminator.init(keys[1], batch.low)
            params["discriminator"] = found["params"]
            stats = {"spectral": found["spectral"]} if "spectral" in found else {}
        if self.projection:
            params["projection"] = self.projection.init(keys[2], jnp.zeros((1, self.config.features)))["params"]
        return {"params": params, "stats": stats}

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        def shapes(key: Array) -> dict[str, Any]:
            side = max(self.multiple, self.teacher.config.multiple * self.teacher.factor if self.teacher else 1)
            image, found = jnp.zeros((1, side, side, 1)), dict[str, Any]()
            if self.autoencoder:
                found["autoencoder"] = self.autoencoder.init(key, Batch(image, image))["params"]
            if self.config.prior and not self.config.prior.train:
                found["anatomy"] = self.guided.init(key, image)["anatomy"]
            if self.teacher and batch is not None:
                found["teacher"] = self.teacher.init(key, image)
            return found

        return jax.eval_shape(shapes, jax.random.key(0))  # type: ignore[no-any-return]

    def precomputed(self, size: int) -> None:
        return None

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        config, losses = self.config, self.config.losses
        paired = jnp.ones(batch.size) if batch.paired is None else batch.paired
        params, autoencoder = self._params(variables), self._autoencoder(variables)
        shown = self.guided.show(params, autoencoder, batch.low)
        noised = self._noised(autoencoder, batch, paired, keys)
        z_t, level = (noised.z_t, noised.level) if noised else (None, None)
        output, features = self.guided.denoise(params, shown, z_t, level.time if level else None)

        total, metrics, known = jnp.zeros(()), dict[str, Array](), jnp.ones(batch.size)
        if noised:
            errors = ERRORS[config.loss](output, target(config.prediction, noised.z0, noised.noise, noised.level))
            weight = snr_weight(noised.level, config.weighting, config.gamma, config.prediction)
            metrics["denoising"] = (paired * errors).mean()
            total += losses.denoising * (paired * weight * errors).mean()
            if config.x0_loss_weight == "snr":
                known = jnp.where(paired > 0, x0_loss_weight(noised.level), 1)  # of the others there is no better estimate than this
        if losses.of_images or self.discriminator or self.autoencoder is None:
            x0 = to_x0(config.prediction, output, noised.z_t, noised.level) if noised else output
            image = self._image(autoencoder, x0, batch.low)
            metrics["psnr"] = psnr_of((paired * squared_errors(image, batch.high)).mean())
            compared = self._compared(params, image, batch, paired)
            metrics |= {name: (known * errors).mean() for name, errors in compared.items()}
            total += sum(losses.of_images[name] * metrics[name] for name in compared)
        if config.distill:
            distilled = self._distilled(variables, batch, (output, features), autoencoder, z_t, level)
            metrics |= distilled
            weights = {"distilled_output": config.distill.alpha, "distilled_features": config.distill.beta}
            total += sum(weights[name] * value for name, value in distilled.items())
        stats = variables["stats"]
        if config.discriminator:
            game, stats = self._game(variables, batch.high, image)
            metrics |= game
            total += losses.adversarial * game["generator"] + game["discriminator"] + config.discriminator.r1 * game["r1"]
        return LossOutput(total, metrics, stats)

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        if self.schedule:
            samples, image = self.sampler(variables, condition).draw(keys, request)
            return UpscaleOutput(image, {} if self.autoencoder else {"clipped": samples.clipped})
        params = self._params(variables)
        output, _ = self.guided.denoise(params, self.guided.show(params, {}, condition.low), None, None)
        return UpscaleOutput(self.pixels.image(output, condition.low), {})

    def segment(self, variables: Variables, condition: Condition) -> Array:
        return self.guided.masks(self._params(variables), condition.low)

    def sampler(self, variables: Variables, condition: Condition) -> Sampler:
        assert self.schedule
        params, autoencoder = self._params(variables), self._autoencoder(variables)
        denoise = functools.partial(self._denoise, params, self.guided.show(params, autoencoder, condition.low))
        if self.autoencoder is None:
            return self.pixels.sampler(self.schedule, self.config.prediction, denoise, condition.low)
        height, width = (side // self.autoencoder.multiple for side in condition.low.shape[1:3])
        decode = functools.partial(in_parts, functools.partial(self.autoencoder.decode, autoencoder))
        return Sampler(self.schedule, self.config.prediction, denoise, (height, width, self.guided.channels), decode)

    def parts(self, size: int) -> dict[str, Part]:
        image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        found = self.guided.parts(size)
        if self.autoencoder:
            found |= {f"autoencoder {name}": part for name, part in self.autoencoder.parts(size).items()}
        if self.discriminator:
            variables = jax.eval_shape(self.discriminator.init, jax.random.key(0), image)
            found["discriminator"] = Part(self.discriminator.apply, variables, (image,))
        return found

    def _denoise(self, params: Any, shown: Shown, z_t: Array, level: Level) -> Array:
        return self.guided.denoise(params, shown, z_t, level.time)[0]

    def _params(self, variables: Variables) -> dict[str, Any]:
        """Of all of the denoiser's networks, trained or not."""
        return {name: tree for name, tree in variables.get("frozen", {}).items() if name == "anatomy"} | variables["params"]

    def _autoencoder(self, variables: Variables) -> Variables:
        return {"params": variables["frozen"]["autoencoder"]} if self.autoencoder else {}

    def _noised(self, autoencoder: Variables, batch: Batch, paired: Array, keys: Array) -> Noised | None:
        """z_t at a random t, or pure noise at t = T for slices without a pair; None where it is evaluated once."""
        if self.schedule is None:
            return None
        steps = self.schedule.steps
        of = {name: jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i, name in enumerate(("time", "noise", "latents"))}
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, steps + 1))(of["time"])
        level = level_at(self.schedule, jnp.where(paired > 0, t, steps))
        z0 = self._diffused(autoencoder, batch, of["latents"])
        noise = draw_noise(of["noise"], 0, z0.shape[1:])
        return Noised(z0, noise, jnp.where(_each(paired > 0), add_noise(z0, noise, level), noise), level)

    def _diffused(self, autoencoder: Variables, batch: Batch, keys: Array) -> Array:
        """z_0: scaled latents of the target, or what is diffused in pixels."""
        if self.autoencoder is None:
            return self.pixels.diffused(batch.high, batch.low)
        assert self.config.autoencoder
        return self.config.autoencoder.latent_scale * self.autoencoder.posterior(autoencoder, batch.high).sample(keys)

    def _image(self, autoencoder: Variables, x0: Array, low: Array) -> Array:
        return self.autoencoder.decode(autoencoder, x0) if self.autoencoder else self.pixels.image(x0, low)

    def _compared(self, params: Any, image: Array, batch: Batch, paired: Array) -> dict[str, Array]:
        """Each of `SpcddLosses.of_images`, `[B]`, times what its slice counts, 0 or 2 for most where some have no pair."""
        errors: dict[str, Callable[[Array, Array], Array]] = {
            "reconstruction": absolute_errors,
            "gradient": gradient_errors,
            "histogram": HISTOGRAMS[self.config.histogram],
            "contrast": local_contrast_errors,
        }
        wanted = self.config.losses.of_images
        found = {name: paired * of(image, batch.high) for name, of in errors.items() if name in wanted}
        if "structure" in wanted:
            judge = jax.lax.stop_gradient(params)  # the extractor is not to learn to see less
            like = batch.high if batch.paired is None else jnp.where(_each(paired > 0), batch.high, batch.low)
            found["structure"] = dice_errors(self.guided.masks(judge, image), self.guided.masks(judge, like))
        return found

    def _distilled(
        self, variables: Variables, batch: Batch, mine: tuple[Array, Array], autoencoder: Variables, z_t: Array | None, level: Level | None
    ) -> dict[str, Array]:
        """Both terms of Algorithm 1, as far as they count, against the teacher's answer to the same."""
        assert self.teacher
        assert self.config.distill
        params = variables["frozen"]["teacher"]
        shown = self.teacher.show(params, autoencoder, batch.low)
        output, features = jax.lax.stop_gradient(self.teacher.denoise(params, shown, z_t, level.time if level else None))
        found = {}
        if self.config.distill.alpha:
            found["distilled_output"] = absolute_errors(mine[0], output).mean()
        if self.config.distill.beta:
            seen = self.projection.apply({"params": variables["params"]["projection"]}, mine[1]) if self.projection else mine[1]
            found["distilled_features"] = squared_errors(jnp.asarray(seen), features).mean()
        return found

    def _game(self, variables: Variables, real: Array, fake: Array) -> tuple[dict[str, Array], dict[str, Any]]:
        """Both players' losses of slices `[B, H, W, 1]`, and the statistics after one iteration of spectral normalisation."""
        config, params = self.config.discriminator, variables["params"]["discriminator"]
        assert config
        assert self.discriminator
        both = interleave(real, jax.lax.stop_gradient(fake))
        if config.spectral:
            variables_of_it = {"params": params, "spectral": variables["stats"]["spectral"]}
            logits, after = self.discriminator.apply(variables_of_it, both, train=True, mutable=["spectral"])
        else:
            logits, after = self.discriminator.apply({"params": params}, both), {}
        of_real, of_fake = logits[0::2], logits[1::2]  # type: ignore[index]
        after = jax.lax.stop_gradient(dict(after))

        def judged(image: Array, params: Any) -> Array:
            return jnp.asarray(self.discriminator.apply({"params": params, **after}, image))  # type: ignore[union-attr]

        game = {
            "discriminator": discriminator_errors(of_real, of_fake, config.loss).mean(),
            "generator": generator_errors(judged(fake, jax.lax.stop_gradient(params)), config.loss).mean(),
            "r1": r1_penalty(lambda x: judged(x, params), real).mean() if config.r1 else jnp.zeros(()),
            "logit_real": of_real.mean(),
            "logit_fake": of_fake.mean(),
        }
        return game, after


def _each(x: Array) -> Array:
    """`[B]` → `[B, 1, 1, 1]`."""
    return x[:, None, None, None]
