"""The benchmark of the metrics times each by its name."""

import json

import pytest

from jaxsr.bench.metrics import bench_metrics, describe


def test_the_result_is_json_and_has_a_table():
    result = bench_metrics((16, 18, 20), ["psnr", "ssim", "resolution"], repeats=2)
    assert json.loads(json.dumps(result)) == result
    assert list(result["seconds"]) == ["psnr", "ssim", "resolution"]
    assert dict(describe(result))["volume"] == "16 × 18 × 20"


def test_a_name_that_is_no_metric_of_two_images_is_refused():
    with pytest.raises(ValueError, match="pnsr, dice: no metric of an image and its reference, as mse, "):
        bench_metrics((16, 18, 20), ["pnsr", "psnr", "dice"])
