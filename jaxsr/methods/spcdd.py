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
from typing import Any

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
from jaxsr.losses.pixels import absolute_errors, squared_errors
from jaxsr.methods.autoencoder import WINDOW, interleave
from jaxsr.methods.base import (
    Batch,
    Condition,
    LossOutput,
    Part,
    Request,
    Sampler,
    UpscaleOutput,
    Variables,
)
from jaxsr.methods.pixels import Pixels
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.spcdd_networks import Guided, Shown
from jaxsr.models.discriminator import PatchDiscriminator
from jaxsr.nn.convolution import dense

ERRORS = {"l1": absolute_errors, "l2": squared_errors}
HISTOGRAMS = {"soft": histogram_errors, "sorted": wasserstein_errors}


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
        params, of_latents = self._params(variables), self._autoencoder(variables)
        shown = self.guided.show(params, of_latents, batch.low)

        z_t = level = None
        if self.schedule:
            draw = {name: jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i, name in enumerate(("time", "noise", "latents"))}
            t = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.schedule.steps + 1))(draw["time"])  # type: ignore[union-attr]
            level = level_at(self.schedule, jnp.where(paired > 0, t, self.schedule.steps))
            z0 = self._diffused(of_latents, batch, draw["latents"])
            noise = draw_noise(draw["noise"], 0, z0.shape[1:])
            z_t = jnp.where(paired[:, None, None, None] > 0, add_noise(z0, noise, level), noise)
        output, features = self.guided.denoise(params, shown, z_t, level.time if level else None)

        total, metrics, known = jnp.zeros(()), dict[str, Array](), jnp.ones(batch.size)
        if level is not None:
            errors = ERRORS[config.loss](output, target(config.prediction, z0, noise, level))
            weight = snr_weight(level, config.weighting, config.gamma, config.prediction)
            metrics["denoising"] = (paired * errors).mean()
            total += losses.denoising * (paired * weight * errors).mean()
            if config.x0_loss_weight == "snr":
                known = jnp.where(paired > 0, x0_loss_weight(level), 1)  # of the others there is no better estimate than this
        if losses.of_images or self.discriminator or self.autoencoder is None:
            image = self._image(of_latents, to_x0(config.prediction, output, z_t, level) if level else output, batch.low)  # type: ignore[arg-type]
            metrics["psnr"] = -10 * jnp.log10(jnp.maximum((paired * squared_errors(image, batch.high)).mean() / WINDOW**2, 1e-12))
            for name, share in losses.of_images.items():
                like, counts = batch.high, paired
                if name == "structure" and batch.paired is not None:
                    like = jnp.where(paired[:, None, None, None] > 0, batch.high, batch.low)
                    counts = jnp.ones_like(paired)
                metrics[name] = (counts * known * self._errors(name, params, image, like)).mean()
                total += share * metrics[name]
        if config.distill:
            distilled = self._distilled(variables, batch, (output, features), of_latents, z_t, level)
            metrics |= distilled
            weights = {"distilled_output": config.distill.alpha, "distilled_features": config.distill.beta}
            total += sum(weights[name] * value for name, value in distilled.items())
        stats = variables["stats"]
        if self.discriminator:
            game, stats = self._game(variables, batch.high, image)
            metrics |= game
            total += losses.adversarial * game["generator"] + game["discriminator"] + config.discriminator.r1 * game["r1"]  # type: ignore[union-attr]
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
        params, of_latents = self._params(variables), self._autoencoder(variables)
        denoise = functools.partial(self._denoise, params, self.guided.show(params, of_latents, condition.low))
        if self.autoencoder is None:
            return self.pixels.sampler(self.schedule, self.config.prediction, denoise, condition.low)
        height, width = (side // self.autoencoder.multiple for side in condition.low.shape[1:3])
        decode = functools.partial(self.autoencoder.decode, of_latents)
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

    def _diffused(self, of_latents: Variables, batch: Batch, keys: Array) -> Array:
        """z_0: scaled latents of the target, or what is diffused in pixels."""
        if self.autoencoder is None:
            return self.pixels.diffused(batch.high, batch.low)
        assert self.config.autoencoder
        return self.config.autoencoder.latent_scale * self.autoencoder.posterior(of_latents, batch.high).sample(keys)

    def _image(self, of_latents: Variables, x0: Array, low: Array) -> Array:
        return self.autoencoder.decode(of_latents, x0) if self.autoencoder else self.pixels.image(x0, low)

    def _errors(self, name: str, params: Any, image: Array, high: Array) -> Array:
        """One of `SpcddLosses.of_images`, `[B]`."""
        match name:
            case "reconstruction":
                return absolute_errors(image, high)
            case "gradient":
                return gradient_errors(image, high)
            case "histogram":
                return HISTOGRAMS[self.config.histogram](image, high)
            case "contrast":
                return local_contrast_errors(image, high)
            case _:
                # The extractor judges, and is not to learn from it to see less.
                judge = jax.lax.stop_gradient(params)
                return dice_errors(self.guided.masks(judge, image), self.guided.masks(judge, high))

    def _distilled(
        self, variables: Variables, batch: Batch, mine: tuple[Array, Array], of_latents: Variables, z_t: Array | None, level: Level | None
    ) -> dict[str, Array]:
        """Both terms of Algorithm 1, as far as they count, against the teacher's answer to the same."""
        assert self.teacher
        assert self.config.distill
        params = variables["frozen"]["teacher"]
        shown = self.teacher.show(params, of_latents, batch.low)
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
