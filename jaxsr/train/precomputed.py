"""Training on a set that networks made (`jaxsr prepare --encode`, `jaxsr distill`): whether it suits the method."""

from collections.abc import Mapping

from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pipeline import augmentation_of
from jaxsr.data.records import Manifest
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Precomputed

_AGAIN = "encode again with"
_LACKS = {  # what a set may lack, and the way out
    "high": f"images of the target, which method.lambda_rec > 0 needs: {_AGAIN} --keep high, or set method.lambda_rec=0",
    "low": f"low-resolution images, which an image encoder that is trained needs: {_AGAIN} --keep low, or set method.image_encoder=null",
    "pooled": f"pooled tokens of an image encoder: {_AGAIN} --image-encoder FILE, or set method.image_encoder=null",
    "tokens": (
        "tokens of all patches, which method.image_encoder.context=patches and method.spatial=vit need: "
        f"{_AGAIN} --image-encoder FILE --tokens patches, or set them to pooled and autoencoder"
    ),
}


def check_precomputed(experiment: Experiment, manifest: Manifest, wanted: Precomputed | None) -> None:
    """Raises ConfigError where the set is not of the kind that the method learns from, or has not what it takes.

    Args:
      wanted: `Method.precomputed` of slices of `data.crop`.
    """
    kind, where, found = experiment.method.kind, f"the set {experiment.data.manifest} (data.manifest)", manifest.precomputed
    if wanted and wanted.required and found != wanted.kind:
        raise no_set(experiment)
    if found is None:
        return
    if wanted is None or found != wanted.kind:
        holds = {"encoded": "latents", "distilled": "a teacher's outputs"}[found]
        raise ConfigError(f"{where} holds {holds}, and method.kind={kind} learns from images: give the set that it was made of")
    check = _check_encoded if found == "encoded" else _check_distilled
    check(experiment, manifest, wanted.shapes)


def no_set(experiment: Experiment) -> ConfigError:
    """For a method that cannot be trained without a set that is not there."""
    given = f"and data.manifest={experiment.data.manifest} is none" if experiment.data.manifest else "and data.manifest names none"
    kind = experiment.method.kind
    return ConfigError(f"method.kind={kind} learns from what a teacher made of a set, {given}: `jaxsr distill` makes one and trains on it")


def _check_distilled(experiment: Experiment, manifest: Manifest, wanted: Mapping[str, tuple[int, ...]]) -> None:
    data, distillation = experiment.data, manifest.distillation
    assert distillation
    where = f"the distilled set {data.manifest} (data.manifest)"
    if data.crop > distillation.crop:
        raise ConfigError(f"data.crop is {data.crop}, and {where} has squares of {distillation.crop}: set data.crop={distillation.crop}")
    varied = augmentation_of(data.augment)
    if varied != AugmentConfig(flip=varied.flip):
        raise ConfigError(f"{where} can be flipped and not varied otherwise: set data.augment=true, or `jaxsr distill --augment` another")
    if (pixel := getattr(experiment.method, "pixel", manifest.voxel_size)) and abs(pixel / manifest.voxel_size - 1) > 0.01:
        raise ConfigError(
            f"{where} has pixels of {manifest.voxel_size:g} mm, and method.stages.high_mm is {pixel:g}: set it to {manifest.voxel_size:g}"
        )


def _check_encoded(experiment: Experiment, manifest: Manifest, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Whether it was cropped and varied as `data` says, lacks something, or has it of another shape."""
    data, encoding = experiment.data, manifest.encoding
    assert encoding
    where = f"the encoded set {data.manifest} (data.manifest)"
    if data.crop != encoding.crop:
        raise ConfigError(
            f"data.crop is {data.crop}, and {where} was encoded in squares of {encoding.crop}: set data.crop={encoding.crop}, "
            f"or {_AGAIN} --crop {data.crop}"
        )
    if "augment" in data.model_fields_set and augmentation_of(data.augment) != encoding.augment:
        settings = " ".join(f"{name}={str(value).lower()}" for name, value in encoding.augment)
        raise ConfigError(
            f"data.augment says otherwise than slices of {where} were varied when they were encoded ({settings}): leave it out, "
            f"or {_AGAIN} another --augment"
        )
    if missing := [name for name in wanted if name not in manifest.maps]:
        raise ConfigError(*(f"{where} has no {_LACKS.get(name, name)}" for name in missing))
    for name, shape in wanted.items():
        if (found := getattr(encoding, name, shape)) != shape:
            sizes = " × ".join(map(str, found)), " × ".join(map(str, shape))
            raise ConfigError(
                f"{where} has {name} of {sizes[0]}, and the method takes {sizes[1]}: set the sizes of method.autoencoder.network and "
                f"method.image_encoder to those of the networks that it was encoded with, or {_AGAIN} others"
            )
