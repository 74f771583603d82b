"""Stopping and going on with nothing of the trainer replaced: in bfloat16, with a rate that depends on the number of steps."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.train.loop import train
from jaxsr.train.stop import Stopped

NETWORK = {"width": 4, "multipliers": [1], "blocks": 1, "groups": 2, "attention_at": [], "dropout": 0.1, "middle_attention": False}
EXPERIMENT = from_dict(
    {
        "method": {"kind": "sr3", "network": NETWORK, "prediction": "v", "residual_std": 0.2, "sampling_steps": 1, "eta": 0.0},
        "data": {"voxel_size": 6.0, "crop": 8, "subjects": 3, "draws": 8, "window": 2, "threads": 1},
        "train": {"steps": 3, "batch_size": 1, "log_every": 1, "checkpoint_every": 100},
        "optimizer": {"decay": "cosine", "warmup_steps": 1},
        "precision": "bf16",
    },
    Experiment,
)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_bfloat16_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    straight = train(EXPERIMENT, tmp_path / "straight")
    with pytest.raises(Stopped, match="stopped at step 1"):
        train(EXPERIMENT, tmp_path / "stopped", report=lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)
    resumed = train(EXPERIMENT, tmp_path / "stopped")
    assert int(resumed.step) == 3
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(s)[0] for s in (straight, resumed)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)
    told = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("straight", "stopped")]
    assert [x["loss"] for x in told[0]] == [x["loss"] for x in told[1]]
