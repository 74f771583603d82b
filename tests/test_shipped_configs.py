"""Every YAML that ships is a config: it loads, and what is dumped of it loads to the same."""

import re
from pathlib import Path

import pytest

from jaxsr.config import ConfigError, dump

CONFIGS = Path(__file__).parents[1] / "configs"


# A protocol says at its top what heads are degraded by; tests/evaluate/test_protocol.py loads it.
EXPERIMENTS = [path for path in sorted(CONFIGS.rglob("*.yaml")) if not re.search("^acquisition:", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_shipped_config_loads_and_its_dump_loads_to_the_same(path, tmp_path):
    from jaxsr.experiment import load_experiment

    config = load_experiment(path)
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load_experiment(tmp_path / "dumped.yaml") == config
    assert hash(config) == hash(load_experiment(path))


def test_settings_that_no_run_could_use_are_refused_all_at_once():
    from jaxsr.experiment import load_experiment

    wrong = {
        "data.voxel_size": "50",
        "optimizer.betas": "[2.0, 5.0]",
        "optimizer.epsilon": "-1",
        "optimizer.clip_norm": "-3",
        "optimizer.final": "9",
        "mesh.data": "0",
        "train.batch_size": "0",
    }
    with pytest.raises(ConfigError) as told:
        load_experiment(CONFIGS / "demo.yaml", [f"{key}={value}" for key, value in wrong.items()])
    missing = [key for key in wrong if key.removesuffix(".data") not in str(told.value)]
    assert not missing, str(told.value)
