"""A report as people meet it, in headless Chromium: it asks nothing of a network, and the viewer is where the crosshair says.

Needs selenium (extra `test`), and the distribution's chromium and chromedriver (Debian: chromium, chromium-driver).
"""

import base64
import io
import itertools
import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from jaxsr.evaluate.report import write_report
from jaxsr.volume.io import Volume, write_volume

SHAPE = (40, 50, 36)
MARK = (30, 38)  # x, y of a bright bar from bottom to top: right of the middle, and in front of it
METHODS = {"student": 0.05, "teacher <b>": 0.2}


def head():
    """An ellipsoid of 4 mm voxels, scanner zero at its middle, with the bar."""
    radius = np.sqrt(sum(np.linspace(-1.1, 1.1, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(SHAPE)))
    data = np.where(radius < 1, 100 + 60 * (1 - radius), 0).astype(np.float32)
    data[MARK[0] - 1 : MARK[0] + 2, MARK[1] - 1 : MARK[1] + 2][radius[MARK[0] - 1 : MARK[0] + 2, MARK[1] - 1 : MARK[1] + 2] < 1] = 400
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0 * (np.array(SHAPE) - 1)
    return Volume(data, affine)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    high = head()
    write_volume(folder / "truth.nii.gz", high)
    rows = []
    for i, (method, amount) in enumerate(METHODS.items()):
        noise = np.random.default_rng(i).standard_normal(SHAPE).astype(np.float32)
        write_volume(folder / f"{i}.nii.gz", Volume(high.data * (1 + amount * noise), high.affine))
        rows += [
            {"subject": name, "method": method, "region": "foreground", "values": {"psnr": 30.0 - i - j, "ssim": None}}
            for j, name in enumerate(("sub-1", "sub-2"))
        ]
    files = {"reference": "truth.nii.gz", "low": "truth.nii.gz", "mask": None, "outputs": {m: f"{i}.nii.gz" for i, m in enumerate(METHODS)}}
    summary = [
        {"method": m, "region": "foreground", "metric": "psnr", "n": 2, "mean": 29.5 - i, "sd": 0.7, "median": 29.5 - i}
        for i, m in enumerate(METHODS)
    ]
    curves = {"sub-1": {m: {"frequency": [0.02, 0.04, 0.06], "correlation": [1, 0.5, 0.1]} for m in METHODS}}
    content = {"rows": rows, "summary": summary, "files": {"sub-1": files, "sub-2": files}, "curves": curves}
    (folder / "metrics.json").write_text(json.dumps(content))
    return write_report(folder, folder / "report.html", viewers=2).path


@pytest.fixture(scope="module")
def started():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    browser, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium or chromedriver is not on PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def chromium(started, page):
    """The page, just opened; when the test is over nothing but it has been asked for, and the console is empty."""
    started.get_log("performance"), started.get_log("browser")
    started.get(page.as_uri())
    wait(started, lambda: shown(started) == "target")
    yield started
    check_quiet(started, page)


def check_quiet(started, page):
    messages = [json.loads(entry["message"])["message"] for entry in started.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert all(url == page.as_uri() or url.startswith("data:image/") for url in asked)
    assert started.get_log("browser") == []


def wait(chromium, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(chromium, 30, poll_frequency=0.05).until(lambda _: condition())


def canvas(chromium):
    return next(c for c in chromium.find_elements("css selector", "#stage canvas") if c.is_displayed())


def shown(chromium):
    return chromium.execute_script("return document.querySelector('#stage canvas:not([hidden])')?.dataset.shown")


def position(chromium):
    """x from the patient's right, y from the back, z from below, in voxels of the viewer."""
    return [int(v) for v in canvas(chromium).get_attribute("data-position").split(",")]


def panes(chromium):
    """Left edge, width, top and height of sagittal, coronal and axial pane, from what brainsprite drew: all of one scale."""
    script = """
      const one = Object.values(JSON.parse(document.getElementById("viewer-data").textContent).subjects)[0].shape;
      const canvas = document.querySelector("#stage canvas:not([hidden])");
      return [one, canvas.width, canvas.height];
    """
    (x, y, z), width, height = chromium.execute_script(script)
    mm = width / (y + 2 * x)
    sizes, left, found = [(y, z), (x, z), (x, y)], 0.0, []
    for across, down in sizes:
        found.append((left, across * mm, (height - down * mm) / 2, down * mm))
        left += across * mm
    return found


def click(chromium, x, y):
    """At a pixel of the canvas."""
    from selenium.webdriver.common.action_chains import ActionChains

    target = canvas(chromium)
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    size = target.size
    ActionChains(chromium).move_to_element_with_offset(target, x - size["width"] / 2, y - size["height"] / 2).click().perform()


def drawn(chromium):
    """The canvas, uint8 `[rows, columns, 3]`."""
    picture = chromium.execute_script("return document.querySelector('#stage canvas:not([hidden])').toDataURL('image/png')")
    return (imread(io.BytesIO(base64.b64decode(picture.partition(",")[2])))[..., :3] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("pane, moved", [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_click_in_a_plane_moves_both_of_its_axes_to_where_it_was(chromium, pane, moved):
    before = position(chromium)
    left, width, top, height = panes(chromium)[pane]
    for across, up in ((0.3, 0.7), (0.6, 0.4)):
        click(chromium, left + across * width, top + (1 - up) * height)
        after = position(chromium)
        shape = chromium.execute_script("return JSON.parse(document.getElementById('viewer-data').textContent).subjects['sub-1'].shape")
        for axis in range(3):
            part = {moved[0]: across, moved[1]: up}.get(axis)
            assert after[axis] == before[axis] if part is None else abs(after[axis] - part * shape[axis]) <= 2


def test_right_is_left_in_the_axial_plane_and_the_scanners_place_is_told(chromium):
    image = drawn(chromium)
    left, width, top, height = panes(chromium)[2]
    pane = image[int(top) : int(top + height), int(left) : int(left + width)].astype(int)
    bright = (pane.min(axis=2) > 230).nonzero()
    row, column = (float(np.median(found)) for found in bright)
    assert column < width / 2
    assert row < height / 2
    click(chromium, left + column, top + row)
    right, front = (4 * (m - (n - 1) / 2) for m, n in zip(MARK, SHAPE, strict=False))
    words = chromium.find_element("id", "viewer-position").text.split(", ")
    assert words[0].startswith("R ")
    assert words[1].startswith("A ")
    assert abs(float(words[0].split()[1]) - right) <= 6
    assert abs(float(words[1].split()[1]) - front) <= 6


def test_changing_the_volume_or_showing_errors_keeps_the_place(chromium):
    left, width, top, height = panes(chromium)[2]
    click(chromium, left + 0.4 * width, top + 0.6 * height)
    place, pictures = position(chromium), [drawn(chromium)]
    choices = chromium.find_elements("css selector", "#viewer-volumes input")
    names = ["target", "input (tricubic)", *METHODS]
    assert [choice.get_attribute("data-name") for choice in choices] == names
    for choice, name in list(zip(choices, names, strict=True))[1:]:
        choice.click()
        wait(chromium, lambda name=name: shown(chromium) == name)
        assert position(chromium) == place
        pictures.append(drawn(chromium))
    chromium.find_element("id", "viewer-error").click()
    wait(chromium, lambda: shown(chromium) == f"{names[-1]} error")
    pictures.append(drawn(chromium))
    assert position(chromium) == place
    different = [(a != b).any() for a, b in itertools.pairwise(pictures)]
    assert different == [False, True, True, True]  # the input of this evaluation is the target itself


def test_keys_move_step_by_step_and_choose_the_volume(chromium):
    from selenium.webdriver.common.keys import Keys

    left, width, top, height = panes(chromium)[2]
    click(chromium, left + 0.5 * width, top + 0.5 * height)
    target = canvas(chromium)
    for key, axis, step in ((Keys.ARROW_RIGHT, 0, 1), (Keys.ARROW_UP, 1, 1), (Keys.ARROW_LEFT, 0, -1), (Keys.PAGE_DOWN, 2, -1)):
        before = position(chromium)
        target.send_keys(key)
        before[axis] += step
        assert position(chromium) == before
    target.send_keys("3")
    wait(chromium, lambda: shown(chromium) == "student")
    target.send_keys("e")
    wait(chromium, lambda: shown(chromium) == "student error")


def test_another_subject_has_a_place_of_its_own_which_is_kept(chromium):
    left, width, top, height = panes(chromium)[2]
    click(chromium, left + 0.3 * width, top + 0.3 * height)
    place = position(chromium)
    first, second = chromium.find_elements("css selector", "#viewer-subject option")
    second.click()
    wait(chromium, lambda: position(chromium) != place)
    elsewhere = position(chromium)
    first.click()
    wait(chromium, lambda: position(chromium) != elsewhere)
    assert position(chromium) == place


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_button(chromium, scheme):
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    colours = """
      const sum = (element, key) => getComputedStyle(element)[key].match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
      return [sum(document.body, "backgroundColor"), sum(document.body, "color"), sum(document.querySelector(".plots svg text"), "fill")];
    """
    before = chromium.execute_script(colours)
    chromium.find_element("id", "theme").click()
    after = chromium.execute_script(colours)
    for (page, text, figure), is_dark in ((before, scheme == "dark"), (after, scheme == "light")):
        assert (page < 150) == is_dark
        assert (text > 600) == is_dark
        assert figure == text


def test_tables_are_sorted_by_the_heading_that_is_clicked(chromium):
    heading = next(b for b in chromium.find_elements("css selector", "button.sort") if b.text == "PSNR (dB)")
    column = "return [...document.querySelectorAll('table.sortable tbody tr')].map((row) => Number(row.cells[3].dataset.value))"
    for direction in ("ascending", "descending"):
        heading.click()
        values = chromium.execute_script(column)
        assert values == sorted(values, reverse=direction == "descending")
        assert heading.find_element("xpath", "..").get_attribute("aria-sort") == direction


def test_a_report_of_label_maps_is_as_quiet_and_fits_too(started, tmp_path):
    labels = {f"Left-Structure-of-some-length-{i}": i for i in range(1, 31)}
    rows = [
        {"subject": f"sub-{s}", "method": method, "region": label, "values": {"dice": 0.9 - 0.02 * s - 0.1 * k, "volume_error": 0.1 * s}}
        for label in labels
        for k, method in enumerate(METHODS)
        for s in range(7)
    ]
    summary = [
        {"method": method, "region": label, "metric": "dice", "n": 7 - k, "mean": 0.84 - 0.1 * k, "sd": 0.04, "median": 0.84 - 0.1 * k}
        for label in labels
        for k, method in enumerate(METHODS)
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": rows, "labels": labels, "summary": summary}))
    page = write_report(tmp_path, tmp_path / "report.html").path
    started.get_log("performance"), started.get_log("browser")
    started.get(page.as_uri())
    width, inner, plots = started.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth, document.querySelectorAll('.plots svg').length]"
    )
    assert width <= inner
    assert plots == 1  # Dice; of the volume's error there is no relative one
    assert not started.find_elements("css selector", "img, canvas")
    table = started.find_element("css selector", "#numbers table")
    assert table.text.splitlines()[0] == "Over subjects, Dice, higher is better"
    assert [len(table.find_elements("css selector", part)) for part in ("tbody tr", "td.best")] == [30, 30]
    assert table.find_element("css selector", "td.n").text == "6–7"
    check_quiet(started, page)


def test_a_phone_scrolls_tables_and_pictures_but_not_the_page(chromium):
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    try:
        width, inner = chromium.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert inner == 390
        assert width <= inner
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
