"""The scaling model: closed forms where there are any, and limits that it must have."""

import json
import math

import pytest
from typer.testing import CliRunner

from jaxsr.bench.measure import PEAKS
from jaxsr.bench.scale import Machine, bench_scale, describe, exchange_seconds, machines, predict, read_machine
from jaxsr.cli import app
from jaxsr.config import ConfigError, from_dict

GIB = 2**30
CHIPS = (8, 16, 64, 512, 4096)


def machine(**changes):
    inside = {"devices": 8, "bytes_per_second": 100e9, "latency": 0.0} | changes.get("inside", {})
    between = {"bytes_per_second": 10e9, "latency": 0.0} | changes.get("between", {})
    return from_dict({"inside": inside, "between": between, "peak": 1e15}, Machine)


def compiled(*rows, data=2, fsdp=8, **facts):
    """As `jaxsr bench compile --json` prints it; each row: kind, axes, payload of all, times."""
    mesh = {"data": data, "fsdp": fsdp, "tensor": 1, "expert": 1}
    found = [
        {"kind": kind, "axes": axes, "devices": math.prod(mesh[axis] for axis in axes), "payload_bytes": payload, "times": times}
        for kind, axes, payload, times in rows
    ]
    about = {"what": "training step", "batch_size": 32 * data, "size": 64, "multiply_adds": 4 * data * 10**15}
    return {**about, "mesh": mesh, "collectives": found, **facts}


def efficiency(step, machine, seconds=1.0, chips=CHIPS):
    return [one.efficiency for one in predict(step, machine, seconds, chips)]


def test_without_exchange_or_on_links_without_end_nothing_is_lost():
    busy = compiled(("all-reduce", ["data"], GIB, 3), ("all-gather", ["fsdp"], GIB, 9))
    fast = machine(inside={"bytes_per_second": 1e30}, between={"bytes_per_second": 1e30})
    assert efficiency(compiled(), machine()) == [(1, 1)] * len(CHIPS)
    assert efficiency(busy, fast) == [(pytest.approx(1), pytest.approx(1))] * len(CHIPS)


def test_an_all_reduce_over_nodes_of_a_device_each_is_a_ring():
    """2 (n − 1)/n S/r [Patarasu & Yuan 2009], and l a hop of a tree, up and down."""
    links = machine(inside={"devices": 1}, between={"latency": 1e-5})
    for n in (2, 8, 1024):
        expected = 2 * (n - 1) / n * GIB / 10e9 + 2 * math.log2(n) * 1e-5
        assert exchange_seconds("all-reduce", GIB, n, n, links) == pytest.approx(expected)
        assert exchange_seconds("all-gather", GIB, n, n, links) == pytest.approx(expected / 2)
    assert exchange_seconds("collective-permute", GIB, 2, 2, links) == pytest.approx(GIB / 10e9 + 1e-5)


def test_where_arrays_do_not_travel_together_each_has_its_latency():
    """As by gloo: a step's gradients are one all-reduce of a hundred arrays."""
    links = machine(inside={"latency": 1e-3, "bytes_per_second": 1e30})
    step = compiled(("all-reduce", ["data"], GIB, 1), fsdp=1)
    step["collectives"][0]["arrays"] = 100
    [grouped], [alone] = (predict(step, links.model_copy(update={"grouped": of}), 1.0, [2]) for of in (True, False))
    assert grouped.exchange_seconds == pytest.approx(2e-3)
    assert alone.exchange_seconds == pytest.approx(0.2)


def test_links_that_reach_half_of_their_rate_take_twice_as_long():
    half = machine().model_copy(update={"reached": 0.5})
    assert exchange_seconds("all-reduce", GIB, 64, 8, half) == pytest.approx(2 * exchange_seconds("all-reduce", GIB, 64, 8, machine()))


def test_of_a_step_that_was_compiled_without_data_parallelism_more_of_it_is_not_predicted():
    step = compiled(("all-gather", ["fsdp"], GIB, 4), data=1)
    assert len(predict(step, machine(), 1.0, [8])) == 1
    with pytest.raises(ConfigError, match="--devices 16 --mesh data=2"):
        predict(step, machine(), 1.0, [8, 16])


def test_what_is_split_within_a_node_does_not_feel_the_network():
    step = compiled(("all-gather", ["fsdp"], GIB, 4))
    slow = machine(between={"bytes_per_second": 1.0})
    seconds = [one.exchange_seconds for one in predict(step, slow, 1.0, CHIPS)]
    assert seconds == pytest.approx([7 / 8 * GIB / 100e9] * len(CHIPS))


def test_a_part_of_each_parameter_crosses_the_network_where_the_rest_is_split_within_nodes():
    """Hierarchical and pure data parallelism agree where eight devices of a node share what crosses: S/8 of each."""
    split = compiled(("all-reduce", ["data"], GIB / 8, 1), data=8)
    fast = machine(inside={"bytes_per_second": 1e30})
    alone = compiled(("all-reduce", ["data"], GIB, 1), data=8, fsdp=1)
    (a,), (b,) = (predict(step, fast, 1.0, [64]) for step in (split, alone))
    assert a.exchange_seconds == pytest.approx(b.exchange_seconds) == pytest.approx(2 * 7 / 8 * GIB / 8 / 10e9)


def test_efficiency_falls_with_chips_and_hiding_the_exchange_never_costs():
    step = compiled(("all-reduce", ["data", "fsdp"], GIB, 2), ("all-gather", ["fsdp"], GIB, 9), ("all-reduce", ["data"], GIB, 2))
    found = efficiency(step, read_machine("h100"), 0.1)
    assert all(best >= worst > 0 for best, worst in found)
    for places in zip(*found, strict=True):
        assert list(places) == sorted(places, reverse=True)


def test_a_device_computes_as_long_as_was_measured_given_or_assumed():
    step = compiled()
    trained = {"devices": 1, "batch_size": 4, "size": 64, "seconds_per_step": 0.25, "device": "X", "date": "2026-11-29T00:00:00"}
    assert bench_scale(step, "h100", [8], trained=trained)["compute_seconds"] == 0.25
    assert bench_scale(step, "h100", [8], trained=trained, step_seconds=0.5)["compute_seconds"] == 0.5
    assumed = bench_scale(step, "h100", [8], share=0.4)
    assert assumed["compute_seconds"] == pytest.approx(2 * 4e15 / 8 / (0.4 * 989.5e12))
    assert "not measured" in dict(describe(assumed))["a device computes"]
    assert assumed["predicted"][0]["slices_per_second"][0] == pytest.approx(32 / assumed["compute_seconds"])
    for wrong in ({"devices": 2}, {"batch_size": 8}, {"size": 32}):
        with pytest.raises(ConfigError, match=r"one device with 4 slices of 64²"):
            bench_scale(step, "h100", [8], trained={**trained, **wrong})


def test_encoded_slices_are_held_to_encoded_slices():
    trained = {"devices": 1, "batch_size": 4, "size": 64, "seconds_per_step": 0.5, "device": "X", "date": "2026-01-01", "encoded": True}
    encoded = compiled(what="training step, encoded slices")
    assert bench_scale(encoded, "h100", [8], trained=trained)["compute_seconds"] == 0.5
    with pytest.raises(ConfigError, match="encoded slices and the other is not"):
        bench_scale(compiled(), "h100", [8], trained=trained)


def test_chips_that_do_not_hold_a_whole_split_and_what_is_no_step_are_refused():
    with pytest.raises(ConfigError, match="multiples of 8"):
        predict(compiled(), machine(), 1.0, [8, 12])
    with pytest.raises(ConfigError, match="jaxsr bench compile CONFIG"):
        bench_scale(compiled(what="upscaling in 5 steps"), "h100", [8], share=0.4)
    with pytest.raises(ConfigError, match="must be known"):
        bench_scale(compiled(multiply_adds=None), "h100", [8], share=0.4)


@pytest.mark.parametrize("name", machines())
def test_every_machine_is_one_whose_network_is_slower_than_what_is_inside(name):
    found = read_machine(name)
    assert found.between.bytes_per_second < found.inside.bytes_per_second


@pytest.mark.parametrize("name, kind", [("a100", "A100"), ("h100", "H100"), ("h200", "H200"), ("tpu-v5p", "TPU v5p")])
def test_peaks_are_those_that_throughput_is_held_to(name, kind):
    assert read_machine(name).peak == dict(PEAKS)[kind].bf16


def test_a_machine_of_one_s_own_is_a_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("inside: {devices: 1, bytes_per_second: 1.0e+9}\nbetween: {bytes_per_second: 1.0e+9}\n")
    assert read_machine(str(mine)).inside.devices == 1
    with pytest.raises(ConfigError, match="h100"):
        read_machine("nothing")
    (tmp_path / "step.json").write_text(json.dumps(compiled(("all-reduce", ["data"], 10**9, 1), fsdp=1)))
    words = ["bench", "scale", str(tmp_path / "step.json"), "--machine", str(mine), "--step-seconds", "2", "--chips", "2", "--json"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["predicted"][0]["seconds"] == [2.0, 3.0]
