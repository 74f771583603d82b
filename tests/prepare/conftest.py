"""A small data set on the disk: synthetic heads of three people at 4 mm, in two contrasts."""

from pathlib import Path

import jax
import numpy as np
import pytest

VOXEL = 4.0


def write_heads(folder: Path, people: int, *, contrasts: tuple[str, ...] = ("T1w",), name: str = "sub-{:02d}_{}.nii.gz") -> Path:
    from jaxsr.data.anatomy import render
    from jaxsr.volume.io import Volume, write_volume

    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = (-88.0, -120.0, -72.0)
    for person in range(people):
        for contrast in contrasts:
            head = render(jax.random.key(person), (44, 52, 40), VOXEL, contrast)
            write_volume(folder / name.format(person, contrast), Volume(np.asarray(head.image) * 1000, affine))
    return folder


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"), 3)
