#!/usr/bin/env python3
"""A network of the same size by another hand, diffusers' on PyTorch, given the same work: training steps, or the slices of a volume.

    python launch/peer_diffusers.py upscale CONFIG [key=value …] --shape X,Y,Z --sampling-steps S --batch-size B
    python launch/peer_diffusers.py train CONFIG [key=value …] --steps N --warmup N

The peer of a teacher is UNet2DConditionModel on its latents, that of SR3 and of a student UNet2DModel on their pixels. Upscaling: from
noise, in the batches that `jaxsr bench upscale` makes of such a volume, padded or resized and filled up alike, with random weights: S
evaluations a batch (and stage), each with a step of DDIMScheduler. Training: the mean squared error of the noise, its gradient, clipping as
configured, AdamW, and the moving average, of train.batch_size slices, each step given to the device before the one before it has ended, as
ours are. In the config's precision, bfloat16 by autocast when training and float32 in TF32 where JAX has that too; channels last; attention
by PyTorch's scaled_dot_product_attention; on CUDA through torch.compile. It prints one line of JSON, whose figures have the names that
`jaxsr bench … --json` gives them; `jaxsr bench train --peer` and `bench upscale --peer` run both and print the ratios.

What it does not do stands under `left_out`, and is in our time: compare FLOP/s, or seconds knowing that. Multiply-adds are those of its own
convolutions and matrix products, as PyTorch counts them. Needs torch and diffusers, of the extra `reference`, and for a GPU torch as it is
built for that.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # it plans here, and must not take the GPU's memory
if __name__ == "__main__":
    sys.modules["torchvision"] = None  # nothing here needs it, and one that was built for another torch ends the imports below

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from jaxsr.bench.measure import circumstances, device_peak, interval_times, peak_memory, summary
from jaxsr.bench.peer import why_no_peer
from jaxsr.bench.synthetic import synthetic_head
from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.base import Request
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.methods.student import StudentConfig
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.train.build import build_method
from jaxsr.upscale.forecast import batch_sizes
from jaxsr.upscale.plan import make_plan
from jaxsr.volume.slices import AXES, SliceMapKind

LEFT_OUT_OF_TRAINING = {"teacher": "autoencoder, image encoder, guidance", "sr3": "", "student": "stages and what is distilled"}


class Peer(NamedTuple):
    """Attributes:
    network: diffusers'.
    channels: of what is diffused; as many again are told beside it.
    factor: pixels to a side of one of its.
    context: tokens and their width, or None.
    left_out: what ours does besides.
    """

    network: torch.nn.Module
    channels: int
    factor: int
    context: tuple[int, int] | None
    left_out: str


def peer_of(config: TeacherConfig | Sr3Config | StudentConfig) -> Peer:
    """diffusers' network of the config's sizes; its `attention_head_dim` is the number of heads in the one, their width in the other."""
    if isinstance(config, Sr3Config | StudentConfig):
        sizes = config.network
        attends = [2**level in sizes.attention_at for level in range(len(sizes.multipliers))]
        widths = [sizes.width * multiplier for multiplier in sizes.multipliers]
        network = UNet2DModel(
            in_channels=2 * sizes.patch**2,
            out_channels=sizes.patch**2,
            down_block_types=["AttnDownBlock2D" if attending else "DownBlock2D" for attending in attends],
            up_block_types=["AttnUpBlock2D" if attending else "UpBlock2D" for attending in reversed(attends)],
            block_out_channels=widths,
            layers_per_block=sizes.blocks,
            attention_head_dim=max(widths),  # one head
            norm_num_groups=sizes.groups,
            add_attention=sizes.middle_attention,
            dropout=getattr(sizes, "dropout", 0.0),
        )
        without = "stages and their conditions, what is distilled, " if isinstance(config, StudentConfig) else ""
        return Peer(network, sizes.patch**2, sizes.patch, None, f"{without}what the host does of a volume")
    unet, latent = config.unet, config.autoencoder.network.latent
    attends = [2**level in unet.attention_at for level in range(len(unet.multipliers))]
    network = UNet2DConditionModel(
        in_channels=2 * latent,
        out_channels=latent,
        down_block_types=tuple("CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attending else "UpBlock2D" for attending in reversed(attends)),
        block_out_channels=tuple(unet.width * multiplier for multiplier in unet.multipliers),
        layers_per_block=unet.blocks,
        cross_attention_dim=unet.context_width,
        attention_head_dim=unet.heads,
        transformer_layers_per_block=unet.depth,
        norm_num_groups=unet.groups,
    )
    tokens = 1 if not config.image_encoder or config.image_encoder.context == "pooled" else 1 + config.image_encoder.patches
    left_out = "autoencoder, image encoder, guidance, and what the host does of a volume"
    return Peer(network, latent, config.autoencoder.build().multiple, (tokens, unet.context_width), left_out)


class Runner:
    """A peer on its device, ready to be run."""

    def __init__(self, experiment: Experiment, device: str, mode: str):
        torch.manual_seed(experiment.seed)
        self.peer, self.cuda, self.mode = peer_of(experiment.method), device == "cuda", mode  # type: ignore[arg-type]
        self.device, self.format = device, torch.channels_last
        self.precision, self.dtype = experiment.precision, torch.bfloat16 if experiment.precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
            True  # as JAX multiplies float32, if it is not told otherwise
        )
        self.network = self.peer.network.to(device, memory_format=self.format)
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def compiled(self, network: torch.nn.Module) -> Callable[..., Any]:
        return network if self.mode == "off" else torch.compile(network, mode=self.mode, dynamic=False)  # type: ignore[no-any-return]

    def drawn(self, batch: int, sides: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """What is diffused, what is told beside it, and the context where there is one."""
        z, told = (torch.randn(batch, self.peer.channels, *sides, device=self.device, dtype=dtype) for _ in range(2))
        context = self.peer.context
        return z, told, () if context is None else (torch.randn(batch, *context, device=self.device, dtype=dtype),)

    def multiply_adds(self, sides: tuple[int, int]) -> int:
        """Of one evaluation for one slice."""
        z, told, context = self.drawn(1, sides, torch.float32)
        # Of attention it knows the operations of a GPU.
        on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter, torch.no_grad():
            self.network(torch.cat([z, told], 1), torch.ones(1, device=self.device), *context)
        return int(counter.get_total_flops()) // 2

    def times(self, function: Callable[[], None], repeats: int) -> list[float]:
        """Seconds of each of `repeats` calls, its end waited for."""
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            if self.cuda:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return found

    def step_times(self, function: Callable[[], None], repeats: int, warmup: int) -> list[float]:
        """As `jaxsr.bench.measure.step_times`."""

        def dispatch() -> Callable[[], None]:
            function()
            if not self.cuda:
                return lambda: None
            ended = torch.cuda.Event()
            ended.record()
            return ended.synchronize

        return interval_times(dispatch, lambda wait: wait(), repeats, warmup)

    def told(self, experiment: Experiment, work: int, seconds: float) -> dict[str, Any]:
        """What every figure is worth nothing without."""
        name = type(self.network).__name__
        kind = torch.cuda.get_device_name() if self.cuda else "cpu"
        peak, about = device_peak(kind, self.precision), circumstances(experiment)
        used = {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_memory_of": "device"} if self.cuda else peak_memory()
        return {
            **about,
            **used,
            "peer": f"diffusers {name}" + ("" if self.mode == "off" else f", torch.compile {self.mode}"),
            "parameters": self.parameters,
            "multiply_adds": work,
            "flops_per_second": 2 * work / seconds,
            "peak_flops_per_second": peak,
            "share_of_peak": peak and 2 * work / seconds / peak,
            "matrix_flops_per_second": None,
            "share_of_matrix_rate": None,
            "floor_seconds": None,
            "device": kind,
            "devices": 1,
            "versions": {
                "jaxsr": about["versions"]["jaxsr"],
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "diffusers")},
            },
        }


def peer_upscale(
    experiment: Experiment,
    shape: tuple[int, int, int],
    steps: int | None,
    batch_size: int,
    *,
    slices: SliceMapKind,
    repeats: int,
    device: str,
    mode: str,
) -> dict[str, Any]:
    """As `jaxsr.bench.upscale.bench_upscale`, of the peer; `mode`: torch.compile's, or 'off'."""
    runner, method = Runner(experiment, device, mode), build_method(experiment)
    request = method.default_request if steps is None else method.default_request._replace(steps=steps)
    plan = make_plan(method, synthetic_head(shape, experiment).grid, experiment.data.voxel_size, tuple(AXES), slices, request)
    factor = runner.peer.factor
    sizes = batch_sizes(method, plan, batch_size, 1)
    batches = [
        ((sides[0] // factor, sides[1] // factor), sizes[sides, request], stages_of(experiment.method, request))
        for sides, count, request in zip(plan.shapes, plan.counts, plan.requests, strict=True)
        if request is not None
        for _ in range(-(-count // sizes[sides, request]))
    ]
    of_slice = {sides: runner.multiply_adds(sides) for sides in {sides for sides, *_ in batches}}
    denoise = runner.compiled(runner.network.eval().to(runner.dtype))
    scheduler = DDIMScheduler(beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(request.steps, device=device)

    @torch.no_grad()
    def sample(sides: tuple[int, int], size: int, stages: int) -> None:
        z, told, context = runner.drawn(size, sides, runner.dtype)
        for _ in range(stages):
            for t in scheduler.timesteps:
                eps = denoise(torch.cat([z, told], 1).contiguous(memory_format=runner.format), t, *context).sample
                z = scheduler.step(eps, t, z).prev_sample
            z, told = torch.randn_like(z), z

    def whole() -> None:
        for batch in batches:
            sample(*batch)

    first = runner.times(whole, 1)[0]
    times = summary(runner.times(whole, repeats))
    work = request.steps * sum(stages * size * of_slice[sides] for sides, size, stages in batches)
    return {
        **runner.told(experiment, work, times["median"]),
        "left_out": runner.peer.left_out,
        "shape": list(shape),
        "sampling_steps": request.steps,
        "batch_size": batch_size,
        "slice_map": slices,
        "slices": plan.slices,
        "seconds_per_volume": times["median"],
        "slices_per_second": plan.slices / times["median"],
        "first_volume_seconds": first,
        "compilations": 0 if mode == "off" else len(of_slice),
        "volume_seconds": times,
    }


def stages_of(config: TeacherConfig | Sr3Config | StudentConfig, request: Request) -> int:
    """How often a batch is sampled, one time's output the next one's condition."""
    return len(config.stages.between(request.from_mm, request.to_mm)) if isinstance(config, StudentConfig) else 1


def peer_train(experiment: Experiment, steps: int, warmup: int, *, device: str, mode: str) -> dict[str, Any]:
    """As `jaxsr.bench.train.bench_train`, of the peer. A training step is three evaluations' work."""
    runner, config = Runner(experiment, device, mode), experiment.train
    side = experiment.data.crop // runner.peer.factor
    work = 3 * config.batch_size * runner.multiply_adds((side, side))
    network, rates = runner.network.train(), experiment.optimizer
    denoise = runner.compiled(network)
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=rates.learning_rate, betas=rates.betas, weight_decay=rates.weight_decay, fused=True)
    noise, told, context = runner.drawn(config.batch_size, (side, side), torch.float32)
    scheduler = DDIMScheduler()

    def step() -> None:
        t = torch.randint(0, 1000, (config.batch_size,), device=device)
        z = scheduler.add_noise(told, noise, t)
        both = torch.cat([z, told], 1).contiguous(memory_format=runner.format)
        with torch.autocast(device, torch.bfloat16) if experiment.precision == "bf16" else nullcontext():
            loss = torch.nn.functional.mse_loss(denoise(both, t, *context).sample.float(), noise)
        loss.backward()
        if rates.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, rates.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - config.ema)

    first = runner.times(step, 1)[0]
    times = summary(runner.step_times(step, steps, warmup))
    return {
        **runner.told(experiment, work, times["median"]),
        "left_out": LEFT_OUT_OF_TRAINING[experiment.method.kind],
        "batch_size": config.batch_size,
        "size": experiment.data.crop,
        "seconds_per_step": times["median"],
        "steps_per_second": 1 / times["median"],
        "slices_per_second": config.batch_size / times["median"],
        "first_step_seconds": first,
        "step_seconds": times,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("upscale", "train"))
    parser.add_argument("config", type=Path, help="of a teacher, of SR3 or of a student")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--shape", default="96,96,96", help="upscale: voxels of the volume (%(default)s)")
    parser.add_argument("--sampling-steps", type=int, help="upscale: the model's, if it is not given")
    parser.add_argument("--batch-size", type=int, default=16, help="upscale: (%(default)s)")
    parser.add_argument("--slices", choices=("pad", "resize"), default="pad", help="upscale: (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="upscale: after a first volume, which compiles (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="train: measured (%(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="train: before (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile, or off (max-autotune on CUDA, off on a CPU)")
    given = parser.parse_intermixed_args(words)
    experiment = load_experiment(given.config, given.overrides)
    if why := why_no_peer(experiment.method):
        parser.error(f"{given.config} {why}")
    most = build_method(experiment).most_steps
    if given.sampling_steps is not None and not 1 <= given.sampling_steps <= most:
        parser.error(f"{given.sampling_steps} sampling steps: the model takes 1 to {most}")
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    how = {"device": device, "mode": given.compile or ("max-autotune" if device == "cuda" else "off")}
    if given.what == "train":
        found = peer_train(experiment, given.steps, given.warmup, **how)
    else:
        x, y, z = (int(side) for side in given.shape.split(","))
        how |= {"slices": given.slices, "repeats": given.repeats}
        found = peer_upscale(experiment, (x, y, z), given.sampling_steps, given.batch_size, **how)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
