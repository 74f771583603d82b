"""Laws of fetching published weights, from a server of our own: whole and the right ones, or not at all, and never twice."""

import functools
import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest

from jaxsr.cli.weights import KINDS as NAMED
from jaxsr.weights.file import WeightsError
from jaxsr.weights.kinds import KINDS
from jaxsr.weights.published import PUBLISHED, Entry, cache_folder, download

DATA = bytes(range(256)) * 20_000
SUM = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA. The server says after how many bytes each answer breaks off, and whether it knows of ranges; it keeps what was asked."""

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if self.path != "/w.bin":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if wanted and server.ranges else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        stop = server.breaks.pop(0) if server.breaks else len(DATA)
        self.wfile.write(server.data[start : start + stop])

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.breaks, server.ranges, server.data = [], [], True, DATA
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """`download` of an entry on that server, into a folder that is not there yet."""

    def entry(path="w.bin", sha256=SUM):
        return Entry(("clip",), "test", "none", f"http://127.0.0.1:{server.server_port}/{path}", sha256, None, "1")

    table = {"known": entry(), "unknown": entry(sha256=None), "absent": entry("absent.bin")}
    return functools.partial(download, folder=tmp_path / "cache", published=table)


def test_a_file_is_fetched_once_and_is_what_was_published(fetch, server, tmp_path):
    seen = []
    path = fetch("known", report=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / "w.bin"
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert fetch("known") == fetch("known", offline=True) == path
    assert server.asked == [("/w.bin", None)]
    assert [p.name for p in path.parent.iterdir()] == ["w.bin"]


def test_what_is_not_as_published_is_deleted(fetch, server, tmp_path):
    server.data = DATA[:-1] + b"x"
    with pytest.raises(WeightsError, match=f"has not the SHA-256 {SUM}, and was deleted"):
        fetch("known")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_was_spoilt_since_is_fetched_again(fetch, server):
    path = fetch("known")
    path.write_bytes(b"spoilt")
    with pytest.raises(WeightsError, match=r"w.bin has the SHA-256 \w+, expected .*: delete it"):
        fetch("known", offline=True)
    assert fetch("known").read_bytes() == DATA
    assert len(server.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_transfer_goes_on_where_it_stopped_if_the_server_can(fetch, server, ranges, tmp_path):
    server.breaks, server.ranges = [2_000_000, 1_500_000], ranges
    part = tmp_path / "cache" / "w.bin.part"
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"was not fetched .*; [\d,]+ bytes are kept, the same command goes on from there"):
            fetch("known")
        assert part.is_file()
        assert not (tmp_path / "cache" / "w.bin").exists()
    kept = part.stat().st_size
    assert fetch("known").read_bytes() == DATA
    assert server.asked[-1] == ("/w.bin", f"bytes={kept}-")
    assert kept > (2_000_000 if ranges else 0)
    assert not part.exists()


def test_a_transfer_that_was_stopped_after_its_last_byte_is_whole(fetch, server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "w.bin.part").write_bytes(DATA)
    assert fetch("known").read_bytes() == DATA


def test_offline_nothing_is_asked_for(fetch, server):
    with pytest.raises(WeightsError, match=r"w.bin is not there, and --offline forbids to fetch it: copy it there from http"):
        fetch("known", offline=True)
    assert server.asked == []


def test_without_a_known_sum_nothing_is_fetched_unless_one_is_given(fetch, server):
    with pytest.raises(WeightsError, match="no SHA-256 of unknown is surely known, so it is not downloaded unseen: give --sha256"):
        fetch("unknown")
    assert server.asked == []
    with pytest.raises(WeightsError, match="has not the SHA-256 000"):
        fetch("unknown", sha256="0" * 64)
    assert fetch("unknown", sha256=SUM.upper()).read_bytes() == DATA


@pytest.mark.parametrize("name, more, message", [
    ("absent", {}, r"absent.bin was not fetched \(404 .*\): check the network"),
    ("nonsense", {}, "'nonsense' is none of the weights that are known: known, unknown, absent"),
    ("known", {"sha256": "0" * 64}, f"known has the SHA-256 {SUM}, not 000"),
])  # fmt: skip
def test_what_cannot_be_fetched_is_told_in_a_sentence(fetch, name, more, message):
    with pytest.raises(WeightsError, match=message) as raised:
        fetch(name, **more)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_told(tmp_path):
    entry = Entry(("clip",), "test", "none", "http://127.0.0.1:9/w.bin", SUM, None, "1")
    with pytest.raises(WeightsError, match="was not fetched"):
        download("gone", tmp_path, published={"gone": entry})


def test_the_cache_folder_is_the_one_given_or_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSR_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(Path("here")) == Path("here")
    monkeypatch.delenv("JAXSR_CACHE_DIR")
    assert "jaxsr" in str(cache_folder())


def test_the_list_is_of_kinds_that_can_be_imported_with_sums_that_can_be_right():
    """OpenAI's addresses hold the sum, torchvision's file names its beginning."""
    assert KINDS.keys() == set(NAMED)
    assert len({entry.file for entry in PUBLISHED.values()}) == len(PUBLISHED)
    for entry in PUBLISHED.values():
        assert entry.kinds
        assert set(entry.kinds) <= KINDS.keys()
        assert entry.url.startswith("https://")
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        if "openaipublic" in entry.url:
            assert f"/{entry.sha256}/" in entry.url
        if "download.pytorch.org" in entry.url:
            assert entry.sha256.startswith(re.search(r"-([0-9a-f]{8})\.pth", entry.url)[1])
