#!/usr/bin/env python3
"""The peer of a teacher's upscaling: diffusers' UNet of the same size, timed on the latents of as many slices.

    python launch/peer_diffusers.py CONFIG [key=value …] --shape X,Y,Z --sampling-steps S --batch-size B

From noise, in the batches that `jaxsr bench upscale` makes of such a volume, padded and filled up alike, with random weights: S evaluations
of UNet2DConditionModel a batch, each with a step of DDIMScheduler. On CUDA in bfloat16, channels last, through torch.compile; on a CPU in
float32 as it is. It prints one line of JSON, whose figures have the names that `jaxsr bench upscale --json` gives them.

What it does not do stands under `left_out`, and is in our time: compare FLOP/s, or seconds knowing that. Needs torch and diffusers, of the
extra `reference`, and for a GPU torch as it is built for that.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # it counts here, and must not take the GPU's memory
if __name__ == "__main__":
    sys.modules["torchvision"] = None  # nothing here needs it, and one that was built for another torch ends the imports below

import jax
import jax.numpy as jnp
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from jaxsr.bench.count import multiply_adds
from jaxsr.bench.measure import circumstances, device_peak, peak_memory, summary
from jaxsr.bench.synthetic import synthetic_head
from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.base import Batch
from jaxsr.methods.teacher import Teacher, TeacherConfig
from jaxsr.train.build import build_method
from jaxsr.upscale.plan import Plan, make_plan
from jaxsr.volume.slices import AXES

LEFT_OUT = "autoencoder, image encoder, guidance, and what the host does of a volume"


def peer_network(config: TeacherConfig) -> UNet2DConditionModel:
    """diffusers' network of the config's sizes; its `attention_head_dim` is the number of heads, as in Stable Diffusion v1's own."""
    unet, latent = config.unet, config.autoencoder.network.latent
    attends = [2**level in unet.attention_at for level in range(len(unet.multipliers))]
    return UNet2DConditionModel(
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


def bench_peer(
    experiment: Experiment, shape: tuple[int, int, int], steps: int, batch_size: int, *, repeats: int, device: str, mode: str
) -> dict[str, Any]:
    """As `jaxsr.bench.upscale.bench_upscale`, of the peer; `mode`: torch.compile's, or 'off'."""
    config, method = experiment.method, build_method(experiment)
    assert isinstance(config, TeacherConfig)
    assert isinstance(method, Teacher)
    volume = synthetic_head(shape, experiment)
    plan = make_plan(method, volume.grid, experiment.data.voxel_size, tuple(AXES), "pad", method.default_request._replace(steps=steps))
    torch.manual_seed(experiment.seed)
    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    unet = peer_network(config).eval().to(device, dtype, memory_format=torch.channels_last if cuda else torch.preserve_format)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    denoise = unet if mode == "off" else torch.compile(unet, mode=mode, dynamic=False)
    scheduler = DDIMScheduler(beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(steps, device=device)
    tokens = 1 if not config.image_encoder or config.image_encoder.context == "pooled" else 1 + config.image_encoder.patches

    @torch.no_grad()
    def sample(height: int, width: int) -> torch.Tensor:
        latent = config.autoencoder.network.latent
        z, spatial = (torch.randn(batch_size, latent, height, width, device=device, dtype=dtype) for _ in range(2))
        context = torch.randn(batch_size, tokens, config.unet.context_width, device=device, dtype=dtype)
        for t in scheduler.timesteps:
            eps = denoise(torch.cat([z, spatial], 1), t, context).sample
            z = scheduler.step(eps, t, z).prev_sample
        return z

    batches = _latents(method, plan, batch_size)

    def whole() -> None:
        for sides in batches:
            sample(*sides)
        if cuda:
            torch.cuda.synchronize()

    first = _times(whole, 1)[0]
    times = summary(_times(whole, repeats))
    memory = peak_memory() if not cuda else {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_memory_of": "device"}
    of_slice = _multiply_adds(method, config, set(batches), tokens)
    work = steps * batch_size * sum(of_slice[sides] for sides in batches)
    kind, precision = (torch.cuda.get_device_name(), "bf16") if cuda else ("cpu", "f32")
    achieved, peak = 2 * work / times["median"], device_peak(kind, precision)
    about = circumstances(experiment)
    packages = {name: version(name) for name in ("torch", "diffusers")}
    return {
        "peer": "diffusers UNet2DConditionModel" + ("" if mode == "off" else f", torch.compile {mode}"),
        "left_out": LEFT_OUT,
        "shape": list(shape),
        "sampling_steps": steps,
        "batch_size": batch_size,
        "slice_map": "pad",
        "slices": plan.slices,
        "seconds_per_volume": times["median"],
        "slices_per_second": plan.slices / times["median"],
        "first_volume_seconds": first,
        "compilations": 0 if mode == "off" else len(set(batches)),
        "parameters": parameters,
        "multiply_adds": work,
        "flops_per_second": achieved,
        "peak_flops_per_second": peak,
        "share_of_peak": peak and achieved / peak,
        "matrix_flops_per_second": None,
        "share_of_matrix_rate": None,
        **memory,
        "volume_seconds": times,
        **about,
        "precision": precision,
        "device": kind,
        "devices": 1,
        "versions": {"jaxsr": about["versions"]["jaxsr"], "python": platform.python_version(), **packages},
    }


def _latents(method: Teacher, plan: Plan, batch_size: int) -> list[tuple[int, int]]:
    """The sides of the latents of every batch."""
    factor = method.autoencoder.multiple
    return [
        (height // factor, width // factor)
        for (height, width), count in zip(plan.shapes, plan.counts, strict=True)
        for _ in range(-(-count // batch_size))
    ]


def _multiply_adds(method: Teacher, config: TeacherConfig, latents: set[tuple[int, int]], tokens: int) -> dict[tuple[int, int], int]:
    """Of one evaluation of the UNet for one slice, by the sides of its latents; counted in ours."""
    image = jax.ShapeDtypeStruct((1, method.multiple, method.multiple, 1), jnp.float32)
    params = jax.eval_shape(method.init, jax.random.key(0), Batch(image, image))["params"]["unet"]

    def counted(sides: tuple[int, int]) -> int:
        shapes = ((1, *sides, 2 * config.autoencoder.network.latent), (1,), (1, tokens, config.unet.context_width))
        found = multiply_adds(method.unet.apply, {"params": params}, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        assert found
        return found

    return {sides: counted(sides) for sides in latents}


def _times(function: Callable[[], None], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="of a teacher")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--shape", default="96,96,96", help="voxels of the volume (%(default)s)")
    parser.add_argument("--sampling-steps", type=int, help="the model's, if it is not given")
    parser.add_argument("--batch-size", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="after a first volume, which compiles (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile, or off (default on CUDA, off on a CPU)")
    given = parser.parse_intermixed_args(words)
    experiment = load_experiment(given.config, given.overrides)
    if not isinstance(experiment.method, TeacherConfig):
        parser.error(f"{given.config} is of kind {experiment.method.kind}, and diffusers' UNet is the peer of a teacher's")
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    x, y, z = (int(side) for side in given.shape.split(","))
    steps = given.sampling_steps or experiment.method.sampling_steps
    mode = given.compile or ("default" if device == "cuda" else "off")
    found = bench_peer(experiment, (x, y, z), steps, given.batch_size, repeats=given.repeats, device=device, mode=mode)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
