"""Layers are timed one by one, and beside another library's."""

import json

import pytest

from jaxsr.bench.layers import KINDS, bench_layers, cases_of, compared, describe
from jaxsr.cli import app
from jaxsr.cli.status import run


@pytest.fixture(scope="module")
def result():
    return bench_layers(batch=2, side=16, channels=4, levels=2, repeats=2)


def test_every_kind_is_timed_at_every_resolution_and_the_result_is_json(result):
    assert [layer["kind"] for layer in result["layers"]] == [*KINDS, *KINDS]
    assert [(layer["side"], layer["channels"]) for layer in result["layers"]] == [(16, 4)] * 6 + [(8, 8)] * 6
    assert json.loads(json.dumps(result)) == result


def test_work_is_that_of_the_layer(result):
    """3 · 3 · 4 · 4 of a pixel, and none of a norm; half the resolution has a quarter of the pixels, twice four times."""
    work = {layer["kind"]: layer["multiply_adds"] for layer in result["layers"][:6]}
    pixels = 2 * 16 * 16
    convolution = 9 * 4 * 4 * pixels
    assert (work["convolution 3 × 3"], work["convolution 1 × 1"]) == (convolution, 4 * 4 * pixels)
    assert (work["half the resolution"], work["twice the resolution"]) == (convolution // 4, 4 * convolution)
    assert work["norm and swish"] == 0
    assert work["attention"] == 4 * 4 * 4 * pixels + 2 * 2 * 256**2 * 4


def test_attention_is_left_out_where_pixels_are_too_many():
    sides = {case.side for case in cases_of(1, 64, 32, 3) if case.kind == "attention"}
    assert sides == {32, 16}


def test_a_layer_twice_as_fast_as_the_peer_s_has_a_ratio_of_two(result):
    doubled = [{**layer, **{n: {"median": 2 * layer[n]["median"]} for n in ("forward", "gradients")}} for layer in result["layers"]]
    both = compared(result, {"layers": doubled, "versions": {"torch": "9"}})
    assert all(layer["ratios"] == {"forward": 2, "gradients": 2} for layer in both["layers"])
    rows = dict(describe(both))
    assert rows["the peer"] == "PyTorch 9"
    assert rows["convolution 3 × 3, 2 × 16² × 4"].count("2.00 of the peer's speed") == 2
    with pytest.raises(ValueError, match="other layers"):
        compared(result, {"layers": doubled[1:]})


def test_a_side_that_is_not_halved_so_often_is_refused(capsys):
    assert run(lambda: app(["bench", "layers", "--side", "12", "--levels", "3"], standalone_mode=False)) == 2
    assert "12 is not halved 3 times" in capsys.readouterr().err
