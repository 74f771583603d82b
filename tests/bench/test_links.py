"""What links are taken for is what their all-reduces took."""

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from jaxsr.bench.links import SIZES, describe, fit
from jaxsr.bench.scale import Inside, Machine, exchange_seconds
from jaxsr.cli import app
from jaxsr.config import from_dict


@pytest.mark.parametrize("devices", [2, 8, 100])
def test_rate_and_latency_are_found_in_times_that_the_scaling_model_makes_of_them(devices):
    inside = {"devices": devices, "bytes_per_second": 3e9, "latency": 2e-5}
    machine = from_dict({"inside": inside, "between": {"bytes_per_second": 1.0}}, Machine)
    seconds = [exchange_seconds("all-reduce", size, devices, 1, machine) for size in SIZES]
    np.testing.assert_allclose(fit(devices, SIZES, seconds), (3e9, 2e-5), rtol=1e-6)


@pytest.mark.parametrize("seconds", [(1e-3, 2e-1), (2e-3, 1e-3)])
def test_where_rate_or_latency_would_be_negative_there_is_no_latency(seconds):
    rate, latency = fit(2, [1e6, 1e8], seconds)
    assert latency == 0
    assert rate > 0


def test_one_device_has_nobody_to_exchange_with():
    answer = CliRunner().invoke(app, ["bench", "links"])
    assert answer.exception.status == 3
    assert "launch/local.sh" in str(answer.exception)


def test_what_is_printed_is_a_machine_s_yaml():
    found = {"bytes_per_second": 2.5e9, "latency": 1e-5, "devices": 2, "processes": 2, "device": "cpu", "processor": "X", "measured": []}
    said = dict(describe(found))["for a machine's YAML"]
    links = from_dict(yaml.safe_load(said)["inside"], Inside)
    assert (links.devices, links.bytes_per_second, links.latency) == (2, 2.5e9, 1e-5)
