"""Where every parameter of the published networks lies, on meshes that they are trained on: tables that change only when somebody means it.

    JAXSR_WRITE_GOLDEN=1 python -m pytest tests/runtime/test_sharding_tables.py

writes them anew. A line is a kind of parameter (numbers in names as #, and how many there are) and, for each of its dimensions, the mesh
axis that it is split over.
"""

import os
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxsr.experiment import load_experiment
from jaxsr.runtime.mesh import AXES, FSDP_FLOOR, variable_shardings
from jaxsr.train.build import abstract_batch, build_method

GOLDEN = Path(__file__).with_name("golden")
CONFIGS = Path(__file__).parents[2] / "configs"
MESHES = {"fsdp 8": (1, 8, 1, 1), "fsdp 4, tensor 2": (1, 4, 2, 1)}
OF_EXPERTS = {"fsdp 4, expert 3": (1, 4, 1, 3)}  # every device holds its share of every expert's parameters, and runs one


def parameters(config):
    experiment = load_experiment(CONFIGS / f"{config}.yaml")
    method, batch = build_method(experiment), abstract_batch(experiment)
    return jax.eval_shape(method.init, jax.random.key(0), batch)["params"]


def rows(boxed, sizes):
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    placed = jax.tree_util.tree_leaves_with_path(variable_shardings(mesh, boxed))
    leaves = jax.tree.leaves(boxed)
    for (path, sharding), leaf in zip(placed, leaves, strict=True):
        yield "/".join(str(part.key) for part in path), leaf.shape, tuple(sharding.spec)


def table(boxed, meshes):
    lines = []
    for name, sizes in meshes.items():
        kinds = Counter((re.sub(r"\d+", "#", path), len(shape), split) for path, shape, split in rows(boxed, sizes))
        lines.append(f"mesh {name}")
        for (path, rank, split), count in sorted(kinds.items(), key=str):
            axes = [split[i] if i < len(split) and split[i] else "·" for i in range(rank)]
            lines.append(f"  {path:<72} {count:>4} ×  {' '.join(axes)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("config", ["teacher", "student", "moediff"])
def test_parameters_lie_where_the_table_says(config):
    boxed = parameters(config)
    file, found = GOLDEN / f"{config}.txt", table(boxed, MESHES | (OF_EXPERTS if config == "moediff" else {}))
    if os.environ.get("JAXSR_WRITE_GOLDEN"):
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")
    # What the table is for: next to nothing that is large stays whole.
    for name, sizes in MESHES.items():
        large = [(int(np.prod(shape)), split) for _, shape, split in rows(boxed, sizes) if np.prod(shape) >= FSDP_FLOOR]
        whole = sum(size for size, split in large if "fsdp" not in split)
        assert whole <= 0.01 * sum(size for size, _ in large), name
