"""MoEDiff-SR: three diffusion experts in the latents of a frozen VQ-VAE, weighed by a gate [MoEDiff-SR §II; equation numbers are its own].

    z_0 = s E_1(x, b, g)                                          s: `vqvae.latent_scale`; latents before quantisation
    z_c = E_2(patches of y)                                       three scales, one Swin encoder                          [Eq. 1]
    G_i of z_c                                                    the gate                                                [Eqs. 2–4]
    z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε, its own t, ᾱ and ε for each     ẑ_0(i) of E_i(z_t, t; z_c)                              [Eqs. 5, 8]
    train     Σ_i G_i (mean w (ε − E_i)² + w' task_i) + w_g L_gating                                                      [Eqs. 6–7, 10–18]
    sample    each expert its own chain by DDIM, then D(Σ_i G_i ẑ_0(i) / s) of the nearest codes                          [Eq. 9]

task_1 is a squared error of latents and of what VGG-16 makes of them, task_2 of edges and spectra, task_3 of short-time spectra;
w' = min(1, SNR), as ẑ_0 has 1/SNR times the squared error of ε̂, and for T = 2000 that is up to 5e8. Eq. 16's second term is a loss on
ẑ_0 too: it has the smallest w' of the experts it compares, or it would pay them most for being unlike each other where there is no signal,
and all should say the same mean. w is 1, or min-SNR-γ.

b and g, the target's bias field and the stretching of its gradients, are seen by E_1 in training only: upscaling takes y alone. For the
first fifth of a run the gate is uniform wherever it stands in these equations. Experts are combined once, after their chains, so each may
run by itself ('asynchronous' in the paper): of slices that are routed to one expert, the others need not run.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.diffusion.process import add_noise, snr_weight, target, to_x0, x0_loss_weight
from jaxsr.diffusion.sampling import sample
from jaxsr.diffusion.schedule import Level
from jaxsr.losses.edges import sobel_errors
from jaxsr.losses.pixels import cosine, squared_errors
from jaxsr.losses.spectra import fourier_errors, stft_errors
from jaxsr.methods.base import Explanation, LossOutput, Part, Request, UpscaleOutput, Variables
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.mixture import (
    diversity,
    entropy,
    expert_errors,
    gate_target,
    gating_errors,
    initial_variance,
    mixed,
    of_slices,
    uncertainty_weight,
    updated_variance,
    variance,
    warmed,
)
from jaxsr.methods.moediff_config import MoediffConfig
from jaxsr.methods.moediff_levels import draw_levels
from jaxsr.methods.moediff_networks import NAMES, NETWORKS
from jaxsr.methods.vqvae import as_frozen, of_frozen
from jaxsr.models.gate import Gate, Gating, TokenEncoder, gate_weights, token_weights, updated_usage
from jaxsr.models.perceptual_loss import vgg_image_errors, vgg_latent_errors, vgg_shapes
from jaxsr.models.token_map import TokenMap
from jaxsr.nn.parts import in_parts
from jaxsr.runtime.experts import each

COUNT = len(NAMES)  # K


class Shown(NamedTuple):
    """What is made of a slice before any expert runs: nothing of it changes from one sampling step to the next."""

    gating: Gating
    condition: Array  # [B, h, w, D]


class Moediff:
    """The recipe of the equations above; a frozen config in, pure functions out.

    Parameters are those of `encoder`, `gate`, `map` (tokens to the experts' condition) and `experts`, by name; statistics are `usage`, c of
    Eq. 4, and `gating`, moments of the gating loss; frozen is `vqvae`, and in training `perceptual`.
    """

    def __init__(self, config: MoediffConfig, dtype: jnp.dtype = jnp.float32):
        self.config, self.dtype = config, dtype
        self.vqvae = config.vqvae.build(dtype)
        self.encoder = TokenEncoder(**config.encoder.sizes, dtype=dtype)
        self.gate = Gate(COUNT, dtype=dtype)
        self.map = TokenMap(config.encoder.condition, dtype)
        self.schedules = {name: expert.schedule.build() for name, expert in config.experts}
        self.networks = {name: NETWORKS[name](**expert.sizes, dtype=dtype) for name, expert in config.experts}
        self.experts = NAMES
        self.multiple = config.multiple
        self.default_request = Request(config.sampling_steps, config.eta, routing=config.routing)
        self.most_steps = min(schedule.steps for schedule in self.schedules.values())

    def init(self, key: Array, batch: Batch) -> Variables:
        keys = dict(zip(("encoder", "gate", "map", *NAMES), jax.random.split(key, 3 + COUNT), strict=True))
        low, latents, time = batch.low, jnp.zeros(self._latents(batch.low)), jnp.zeros(len(batch.low))
        params = {"encoder": self.encoder.init(keys["encoder"], low)["params"]}
        grids = self.encoder.apply({"params": nn.meta.unbox(params["encoder"])}, low)
        params["gate"] = self.gate.init(keys["gate"], grids)["params"]
        params["map"] = self.map.init(keys["map"], grids, latents.shape[1:3])["params"]
        condition = jnp.zeros((*latents.shape[:3], self.config.encoder.condition))
        params["experts"] = {name: net.init(keys[name], latents, condition, time)["params"] for name, net in self.networks.items()}
        return {"params": params, "stats": {"usage": jnp.full(COUNT, 1 / COUNT), "gating": initial_variance()}}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        config, params, stats = self.config, variables["params"], variables["stats"]
        vqvae = of_frozen(variables["frozen"]["vqvae"])
        z0 = self.vqvae.encode(vqvae, batch.high, batch.bias, batch.jacobian)
        shown = self._show(params, batch.low)
        weights = warmed(self._weights(shown.gating, stats["usage"], z0.shape[1:3]), progress, config.warmup)

        drawn = draw_levels(self.schedules, keys, z0.shape[1:], self.config.levels)
        levels, noises = drawn.levels, drawn.noises
        noised = {name: add_noise(z0, noises[name], levels[name]) for name in NAMES}  # Eq. 5
        outputs = each([functools.partial(self._denoise_of, name) for name in NAMES], params["experts"], shown.condition, noised, levels)

        errors, tasks, estimates, metrics = [], [], [], dict[str, Array]()
        known = [jnp.ones(len(z0)) if config.x0_loss_weight == "none" else x0_loss_weight(levels[name]) for name in NAMES]  # w'
        for i, (name, output) in enumerate(zip(NAMES, outputs, strict=True)):
            level, wanted = levels[name], target(config.prediction, z0, noises[name], levels[name])
            estimates.append(to_x0(config.prediction, output, noised[name], level))  # Eq. 8
            error = jnp.square(output - wanted).mean(-1)  # [B, h, w]
            weighted = snr_weight(level, config.weighting, config.min_snr_gamma, config.prediction)[:, None, None] * error  # Eq. 7
            task = known[i] * self._task(name, variables, batch, z0, estimates[-1])
            errors.append(weighted)
            tasks.append(config.task * task)
            metrics |= {f"denoising_{name}": error.mean(), f"task_{name}": task.mean()}
        expert_loss = expert_errors(weights, jnp.stack(errors, -1), jnp.stack(tasks, -1))  # Eqs. 6 and 13

        similarity = jnp.stack([self._similarity(estimate, z0) for estimate in estimates], axis=-1)  # [B, (h, w,) K]
        supervised = gating_errors(weights, gate_target(similarity, config.temperature_floor))
        supervised = drawn.comparable * supervised.reshape(len(supervised), -1).mean(-1)
        apart = jnp.stack(known).min(0) * diversity(jnp.stack(estimates))
        gating = supervised + config.diversity * apart  # Eq. 16, [B]
        weight = uncertainty_weight(stats["gating"], config.gating_ceiling)  # Eq. 17
        loss = (expert_loss + weight * gating).mean()  # Eq. 18

        weights_of_slices = of_slices(weights)
        metrics |= {
            "experts": expert_loss.mean(),
            "gating": gating.mean(),
            "supervised": supervised.sum() / jnp.maximum(drawn.comparable.sum(), 1),
            "latent_std": z0.std(),
            "diversity": apart.mean(),
            "gating_weight": weight,
            "gating_variance": variance(stats["gating"]),
            "gate_entropy": entropy(weights).mean(),
        }
        metrics |= {f"gate_{name}": weights_of_slices[:, i].mean() for i, name in enumerate(NAMES)}
        metrics |= {f"similarity_{name}": similarity[..., i].mean() for i, name in enumerate(NAMES)}
        stats = {"usage": updated_usage(stats["usage"], weights), "gating": updated_variance(stats["gating"], gating)}
        return LossOutput(loss, metrics, jax.lax.stop_gradient(stats))

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        shown = self._show(variables["params"], condition.low)
        shape = self._latents(condition.low)[1:]
        weights = self._weights(shown.gating, variables["stats"]["usage"], shape[:2])
        params = variables["params"]["experts"]
        chain = functools.partial(self._chain, shape=shape, request=request)
        if request.expert is not None:
            z0 = chain(NAMES[request.expert], params, shown.condition, keys)
        else:
            drawn = each([functools.partial(chain, name) for name in NAMES], params, shown.condition, keys)  # [K, B, h, w, C]
            z0 = mixed(drawn, weights if request.routing == "all" else jax.nn.one_hot(of_slices(weights).argmax(-1), COUNT))  # Eq. 9
        metrics = {f"Gate{name.capitalize()}": of_slices(weights)[:, i] for i, name in enumerate(NAMES)}
        decode = functools.partial(self.vqvae.decode, of_frozen(variables["frozen"]["vqvae"]))
        return UpscaleOutput(in_parts(decode, z0), metrics)

    def route(self, variables: Variables, condition: Condition) -> Array:
        """The expert of the highest weight of each slice, int `[B]`."""
        gating = self._show(variables["params"], condition.low).gating
        weights = self._weights(gating, variables["stats"]["usage"], self._latents(condition.low)[1:3])
        return jnp.asarray(of_slices(weights).argmax(-1))

    def explain(self, variables: Variables, condition: Condition) -> Explanation:
        gating = self._show(variables["params"], condition.low).gating
        weights = self._weights(gating, variables["stats"]["usage"], self._latents(condition.low)[1:3])
        sides = condition.low.shape[1:3]

        def whole(grid: Array) -> Array:
            return jnp.repeat(jnp.repeat(grid, sides[0] // grid.shape[1], 1), sides[1] // grid.shape[2], 2)

        attention = sum(whole(of_scale) * of_scale[0, ..., 0].size for of_scale in gating.attention)
        local = whole(weights if weights.ndim == 4 else weights[:, None, None])
        return Explanation(of_slices(weights), jnp.asarray(attention), local)

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        def shapes(key: Array) -> dict[str, Any]:
            slices = jnp.zeros((1, self.vqvae.multiple, self.vqvae.multiple, 1))
            return as_frozen(self.vqvae.init(key, Batch(slices, slices)))

        frozen = {"vqvae": jax.eval_shape(shapes, jax.random.key(0))}
        return frozen if batch is None or self.config.perceptual == "none" else {**frozen, "perceptual": vgg_shapes()}

    def precomputed(self, size: int) -> None:
        return None

    def parts(self, size: int) -> dict[str, Part]:
        def shape(*dimensions: int) -> Any:
            return jax.ShapeDtypeStruct((1, *dimensions), jnp.float32)

        image = shape(size, size, 1)
        params = jax.eval_shape(self.init, jax.random.key(0), Batch(image, image))["params"]
        latents = shape(*self._latents(image)[1:])
        grids = jax.eval_shape(self.encoder.apply, {"params": nn.meta.unbox(params["encoder"])}, image)
        condition = shape(*latents.shape[1:3], self.config.encoder.condition)
        parts = {
            f"expert {name}": Part(net.apply, {"params": params["experts"][name]}, (latents, condition, shape()))
            for name, net in self.networks.items()
        }
        parts["patches and Swin encoder"] = Part(self.encoder.apply, {"params": params["encoder"]}, (image,))
        parts["gate"] = Part(self.gate.apply, {"params": params["gate"]}, (grids,))
        to_map = lambda variables, *grids: self.map.apply(variables, grids, latents.shape[1:3])  # noqa: E731
        parts["tokens to condition"] = Part(to_map, {"params": params["map"]}, tuple(grids))
        return parts | {f"VQ-VAE {name}": part for name, part in self.vqvae.parts(size).items()}

    def _show(self, params: Any, low: Array) -> Shown:
        grids = self.encoder.apply({"params": params["encoder"]}, low)  # Eq. 1
        gating = self.gate.apply({"params": params["gate"]}, grids)  # Eqs. 2–3
        return Shown(gating, jnp.asarray(self.map.apply({"params": params["map"]}, grids, self._latents(low)[1:3])))  # type: ignore[arg-type]

    def _weights(self, gating: Gating, usage: Array, shape: tuple[int, ...]) -> Array:
        """G `[B, K]`, or `[B, h, w, K]` of a gate that looks at tokens [Eq. 4]."""
        if self.config.gate == "token":
            return token_weights(gating, usage, shape, self.config.gamma, self.config.literal)
        return gate_weights(gating.score, usage, self.config.gamma, self.config.literal)

    def _denoise_of(self, name: str, params: Any, condition: Array, z_t: dict[str, Array], levels: dict[str, Level]) -> Array:
        return self._denoise(name, params, condition, z_t[name], levels[name])

    def _denoise(self, name: str, params: Any, condition: Array, z_t: Array, level: Level) -> Array:
        """What the expert `name` says of `z_t`, float32 `[B, h, w, C]`."""
        return jnp.asarray(self.networks[name].apply({"params": params[name]}, z_t, condition, level.time))

    def _chain(self, name: str, params: Any, condition: Array, keys: Array, *, shape: tuple[int, ...], request: Request) -> Array:
        """ẑ_0 `[B, h, w, C]` of one expert, from its own noise by its own schedule."""
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, NAMES.index(name))
        denoise = functools.partial(self._denoise, name, params, condition)
        drawn = sample(self.schedules[name], denoise, own, shape, steps=request.steps, prediction=self.config.prediction, eta=request.eta)
        return drawn.x0

    def _similarity(self, estimate: Array, z0: Array) -> Array:
        """cos θ(ẑ_0(i), z_0) of slices `[B]`, or of pixels `[B, h, w]` [Eq. 14]."""
        return cosine(estimate, z0, "pixel" if self.config.gate == "token" else "slice")

    def _task(self, name: str, variables: Variables, batch: Batch, z0: Array, estimate: Array) -> Array:
        """The task loss of the expert `name`, `[B]`."""
        config = self.config
        match name:
            case "smooth":
                return squared_errors(estimate, z0) + self._perceptual(variables, batch, z0, estimate)  # Eq. 10
            case "cortex":
                return sobel_errors(estimate, z0) + fourier_errors(estimate, z0, config.fourier)  # Eq. 11
            case _:
                return stft_errors(estimate, z0, config.stft_windows, config.stft)  # Eq. 12

    def _perceptual(self, variables: Variables, batch: Batch, z0: Array, estimate: Array) -> Array | float:
        """Eq. 10's second term, `[B]`."""
        if self.config.perceptual == "none":
            return 0.0
        features = {"params": variables["frozen"]["perceptual"]}
        if self.config.perceptual == "vgg_latent":
            return vgg_latent_errors(features, estimate, z0, self.dtype)
        image = self.vqvae.decode(of_frozen(variables["frozen"]["vqvae"]), estimate)
        return vgg_image_errors(features, image, batch.high, self.dtype)

    def _latents(self, low: Array) -> tuple[int, int, int, int]:
        """Shape of the latents of slices."""
        batch, height, width, _ = low.shape
        factor = self.config.vqvae.multiple
        return batch, height // factor, width // factor, self.config.vqvae.network.embedding
