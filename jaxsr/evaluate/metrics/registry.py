"""Every metric by name: what it is a function of, its unit, and which way is better. A new metric is a function and a line here."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxsr.evaluate.metrics import contrast, edges, perceptual, pixel, resolution, ssim, tissue, vif
from jaxsr.models.perceptual import LEAST_SIDE

PLAIN = "#.4g"


class Metric(NamedTuple):
    """A metric as tables and protocols see it."""

    function: Callable[..., object]
    title: str
    unit: str  # "intensity" is the images' own, "" a pure number
    better: Literal["higher", "lower", "zero"]  # zero: the error is signed
    needs: tuple[str, ...] = ()  # keyword arguments without which it cannot be called
    operands: Literal["images", "image", "labels"] = "images"  # image and reference, the image alone, or two label maps
    masked: bool = True  # takes `mask`
    least: int = 1  # voxels on every side
    spec: str = PLAIN  # how tables write it


METRICS = {
    "mse": Metric(pixel.mse, "MSE", "intensity²", "lower"),
    "rmse": Metric(pixel.rmse, "RMSE", "intensity", "lower"),
    "nrmse": Metric(pixel.nrmse, "NRMSE", "", "lower", spec=".4f"),
    "mae": Metric(pixel.mae, "MAE", "intensity", "lower"),
    "psnr": Metric(pixel.psnr, "PSNR", "dB", "higher", ("data_range",), spec=".2f"),
    "ssim": Metric(ssim.ssim, "SSIM", "", "higher", ("data_range",), least=ssim.WINDOW, spec=".4f"),
    "ms_ssim": Metric(ssim.ms_ssim, "MS-SSIM", "", "higher", ("data_range",), least=ssim.LEAST, spec=".4f"),
    "vif": Metric(vif.vif, "VIFp", "", "higher", ("data_range",), least=vif.LEAST, spec=".4f"),
    "gmsd": Metric(edges.gmsd, "GMSD", "", "lower", ("data_range",), least=2, spec=".4f"),
    "hfen": Metric(edges.hfen, "HFEN", "", "lower", least=edges.LOG_TAPS, spec=".4f"),
    "gradient_error": Metric(edges.gradient_error, "gradient error", "", "lower", ("voxel_size",), least=3, spec=".4f"),
    "resolution": Metric(
        resolution.effective_resolution, "effective resolution", "mm", "lower", ("voxel_size",), least=resolution.LEAST, spec=".2f"
    ),
    "coarsest_resolution": Metric(
        resolution.coarsest_resolution, "resolution of the worst axis", "mm", "lower", ("voxel_size",), least=resolution.LEAST, spec=".2f"
    ),
    "histogram_match": Metric(contrast.histogram_match, "histogram match", "", "higher", ("data_range",), spec=".4f"),
    "local_contrast_error": Metric(contrast.local_contrast_error, "local contrast error", "", "lower", least=contrast.WINDOW),
    "lpips": Metric(  # (low, high) is its data range; two-dimensional, so `least` is of a slice's sides, for the net that needs least
        perceptual.lpips, "LPIPS", "", "lower", ("weights", "data_range"), least=min(LEAST_SIDE.values()), spec=".4f"
    ),
    "cnr": Metric(contrast.cnr, "CNR", "", "higher", ("roi", "background"), "image", masked=False),
    "dice": Metric(tissue.dice, "Dice", "", "higher", ("labels",), "labels", masked=False, spec=".4f"),
    "volume_error": Metric(tissue.volume_error, "volume error", "ml", "zero", ("labels", "voxel_size"), "labels", masked=False, spec=".3f"),
    "relative_volume_error": Metric(
        tissue.relative_volume_error, "relative volume error", "", "zero", ("labels",), "labels", masked=False, spec=".4f"
    ),
}
