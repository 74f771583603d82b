"""Weights that others have published, and fetching them: whole, the ones that were asked for, and again from where a transfer stopped.

A SHA-256 stands here only where it is sure: it is part of the publisher's own address, or begins as the publisher's file name says, or was
computed from the file that the publisher's package ships, or independent projects state the same. Where none does, whoever downloads must
bring one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from jaxsr.files import shown
from jaxsr.weights.file import WeightsError

CACHE = "JAXSR_CACHE_DIR"  # the environment variable that names the folder
TIMEOUT = 30  # seconds that a server may be silent
CHUNK = 2**20

Report = Callable[[int, int | None], object]


class Entry(NamedTuple):
    """Attributes:
    kinds: what can be imported from it.
    title: what it is.
    licence: of the publisher.
    url: of the file.
    sha256: of the file; None where it is not surely known.
    size: in bytes, or None.
    parameters: of what is imported.
    """

    kinds: tuple[str, ...]
    title: str
    licence: str
    url: str
    sha256: str | None
    size: int | None
    parameters: str

    @property
    def file(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


_CLIP = "https://openaipublic.azureedge.net/clip/models"
_CLIP_SUMS = {
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
}
_HUB = "https://huggingface.co"
_TORCH = "https://download.pytorch.org/models"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"

PUBLISHED: dict[str, Entry] = {
    "zero123": Entry(
        ("unet", "autoencoder", "clip"),
        "Zero-1-to-3, the checkpoint of the paper: what the teacher starts from",
        "MIT",
        f"{_HUB}/cvlab/zero123-weights/resolve/main/105000.ckpt",
        None,
        None,
        "unet 859,532,484, autoencoder 83,653,863, clip 303,966,208",
    ),
    "zero123-xl": Entry(
        ("unet", "autoencoder", "clip"),
        "Zero-1-to-3, trained on Objaverse-XL",
        "MIT",
        "https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt",
        None,
        None,
        "unet 859,532,484, autoencoder 83,653,863, clip 303,966,208",
    ),
    "sd-1.5": Entry(
        ("unet", "autoencoder"),
        "Stable Diffusion 1.5, moving average (its denoiser has 4 channels in, the teacher's 8)",
        "CreativeML Open RAIL-M",
        f"{_HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors",
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        4_265_146_304,
        "unet 859,520,964, autoencoder 83,653,863",
    ),
    "sd-vae-mse": Entry(
        ("autoencoder",),
        "Stable Diffusion v1's autoencoder, its decoder trained on for smoother images",
        "MIT",
        f"{_HUB}/stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors",
        "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75",
        334_641_190,
        "83,653,863",
    ),
    "clip-vit-l-14": Entry(
        ("clip",),
        "CLIP ViT-L/14",
        "MIT",
        f"{_CLIP}/{_CLIP_SUMS['ViT-L-14']}/ViT-L-14.pt",
        _CLIP_SUMS["ViT-L-14"],
        932_768_134,
        "303,966,208",
    ),
    "clip-vit-b-32": Entry(
        ("clip",), "CLIP ViT-B/32", "MIT", f"{_CLIP}/{_CLIP_SUMS['ViT-B-32']}/ViT-B-32.pt", _CLIP_SUMS["ViT-B-32"], None, "87,849,216"
    ),
    "alexnet": Entry(
        ("lpips",),
        "AlexNet on ImageNet, backbone of LPIPS (needs lpips-alex beside it)",
        "BSD-3-Clause (torchvision)",
        f"{_TORCH}/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
        "2,469,696",
    ),
    "vgg16": Entry(
        ("vgg16", "lpips"),
        "VGG-16 on ImageNet, for perceptual losses and as backbone of LPIPS (which needs lpips-vgg beside it)",
        "BSD-3-Clause (torchvision)",
        f"{_TORCH}/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
        "14,714,688",
    ),
    "lpips-alex": Entry(
        ("lpips",),
        "LPIPS 0.1's heads for AlexNet",
        "BSD-2-Clause",
        f"{_LPIPS}/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        6_009,
        "1,152",
    ),
    "lpips-vgg": Entry(
        ("lpips",),
        "LPIPS 0.1's heads for VGG-16",
        "BSD-2-Clause",
        f"{_LPIPS}/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        7_289,
        "1,472",
    ),
}


def cache_folder(given: Path | None = None) -> Path:
    """Where downloads are kept: the folder `given`, or that of JAXSR_CACHE_DIR, or the system's place for caches."""
    if given is not None:
        return given
    if named := os.environ.get(CACHE):
        return Path(named)
    import pooch

    return Path(pooch.os_cache("jaxsr"))


def download(
    name: str,
    folder: Path,
    *,
    sha256: str | None = None,
    offline: bool = False,
    report: Report = lambda done, total: None,
    published: dict[str, Entry] = PUBLISHED,
) -> Path:
    """The file `name` of `published`, in `folder`: fetched if it is not there, or is there with another SHA-256.

    What an interrupted transfer brought stays beside it as FILE.part, and the next one goes on from there.

    Args:
      sha256: of the file, for an entry that has none; an entry's own counts for more, and must agree.
      offline: nothing is fetched.
      report: is told of bytes, and of all there are if the server says so.

    Raises:
      WeightsError: for an unknown name, a SHA-256 that is missing or wrong, offline without the file, or a server that does not give it.
    """
    entry = published.get(name)
    if entry is None:
        raise WeightsError(f"{shown(name)!r} is none of the weights that are known: {', '.join(published)} (`jaxsr weights list`)")
    if entry.sha256 and sha256 and sha256.lower() != entry.sha256:
        raise WeightsError(f"{name} has the SHA-256 {entry.sha256}, not {shown(sha256.lower())}: leave --sha256 out")
    expected = entry.sha256 or (sha256 or "").lower()
    if not expected:
        raise WeightsError(
            f"no SHA-256 of {name} is surely known, so it is not downloaded unseen: give --sha256, as whoever you trust states it, "
            f"or fetch {entry.url} yourself and import it"
        )
    path = folder / entry.file
    import pooch

    if offline:
        if not path.is_file():
            raise WeightsError(f"{shown(path)} is not there, and --offline forbids to fetch it: copy it there from {entry.url}")
        if (found := pooch.file_hash(str(path))) != expected:
            raise WeightsError(f"{shown(path)} has the SHA-256 {found}, expected {expected}: delete it, and download it again")
        return path
    import requests

    pooch.get_logger().setLevel("ERROR")
    store = pooch.create(folder, base_url="", registry={entry.file: f"sha256:{expected}"}, urls={entry.file: entry.url})
    part = folder / f"{entry.file}.part"
    try:
        store.fetch(entry.file, downloader=_Resuming(part, report))
    except requests.RequestException as error:
        kept = f"; {part.stat().st_size:,} bytes are kept, the same command goes on from there" if part.is_file() else ""
        raise WeightsError(
            f"{entry.url} was not fetched ({_reason(error)}){kept}: check the network, or copy the file to {shown(path)}"
        ) from error
    except ValueError as error:  # of the hash: pooch has deleted what came
        raise WeightsError(
            f"what {entry.url} gave has not the SHA-256 {expected}, and was deleted: it changed, or was tampered with"
        ) from error
    return path


class _Resuming:
    """A downloader for pooch that writes to `part` first and goes on from its end, where the server can."""

    def __init__(self, part: Path, report: Report):
        self._part, self._report = part, report

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        import requests

        done = self._part.stat().st_size if self._part.is_file() else 0
        wanted = {"Range": f"bytes={done}-"} if done else {}
        with requests.get(url, headers={**wanted, "Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as answer:
            if not (done and answer.status_code == 416):  # where there is no more, it was whole
                answer.raise_for_status()
                if answer.status_code != 206:  # from the start, whatever was asked for
                    done = 0
                length = answer.headers.get("Content-Length", "")
                total = done + int(length) if length.isdigit() else None
                with open(self._part, "ab" if done else "wb") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        self._report(done := done + len(chunk), total)
                if total is not None and done < total:
                    raise requests.ConnectionError(f"{done:,} of {total:,} bytes came")
        os.replace(self._part, output_file)


def _reason(error: Exception) -> str:
    """In a line; urllib3 wraps what happened in how often it tried."""
    inner = getattr(next(iter(error.args), None), "reason", None) or error
    return next(iter(str(inner).splitlines()), type(error).__name__)
