"""Every YAML that ships is a config: it loads, and what is dumped of it loads to the same."""

from pathlib import Path

import pytest

from jaxsr.config import dump

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_shipped_config_loads_and_its_dump_loads_to_the_same(path, tmp_path):
    from jaxsr.experiment import load_experiment

    config = load_experiment(path)
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load_experiment(tmp_path / "dumped.yaml") == config
    assert hash(config) == hash(load_experiment(path))
