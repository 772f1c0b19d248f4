"""The page in a headless Chromium, end to end: needs gradio, playwright and a Chromium (on PATH, or CHROMIUM=FILE)."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import painted_fixture, run_fixture, upload_fixture  # noqa: F401

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SECONDS = 120_000  # milliseconds: a canvas drawn without a graphics card takes seconds for each move of the mouse

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH, or CHROMIUM=FILE"),
]


@pytest.fixture
def served(run, tmp_path, request):
    """app.py as users start it: its address, the folder of its images, and a way to stop it."""
    log = tmp_path / "app.log"
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, str(ROOT / "app.py"), f"checkpoint={run}", "port=0", "browser=false"]
    command += ["max_images=8", "max_mb=0.2", "device=cpu", "lr=0.01"]
    command += getattr(request, "param", [])
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment)
    try:
        lines = _until(lambda: _lines(log), process)
        yield lines["page"], Path(lines["images"].partition(",")[0]), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list((tmp_path / "temporary").glob("metaseg*"))


def _lines(log):
    lines = dict(line.split(maxsplit=1) for line in log.read_text().splitlines() if len(line.split()) > 1)
    return lines if "stop" in lines else None


def _until(found, process=None, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = found()
        if result:
            return result
        assert process is None or process.poll() is None, "app.py ended"
        time.sleep(0.2)
    raise AssertionError("this did not come to be in time")


@pytest.fixture
def browser(tmp_path, request):
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=SWITCHES,
            accept_downloads=True,
            **getattr(request, "param", {"viewport": {"width": 1400, "height": 1200}}),
        )
        context.set_default_timeout(SECONDS)
        yield context
        context.close()


@pytest.fixture
def page(browser, served):
    page = browser.new_page()
    page.elsewhere = []
    page.on("request", lambda request: page.elsewhere.append(request.url) if _elsewhere(request.url) else None)
    page.goto(served[0])
    page.locator("#status", has_text="No images yet").wait_for()
    return page


def _elsewhere(url):
    return not url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "blob:"))


def choose(page, number):
    page.locator("#images .grid-container button").nth(number).click()
    page.locator("#title", has_text=f"case{number}").wait_for()
    time.sleep(2)  # the canvas has no sign of having drawn its image


def stroke(page, *points):
    """Drag the brush along points given as fractions of the canvas, (0.5, 0.5) its middle."""
    canvas = page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def touched(page, *points):
    """As `stroke`, with a finger."""
    canvas = page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    finger = page.context.new_cdp_session(page)
    for number, (x, y) in enumerate(points):
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        finger.send(
            "Input.dispatchTouchEvent", {"type": "touchMove" if number else "touchStart", "touchPoints": [place]}
        )
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def require_accessible(page):
    """Neither serious nor critical findings of axe-core, and nothing wider than the window."""
    found = axe.Axe().run(page).response["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not bad, [(one["id"], node["html"], node["failureSummary"]) for one in bad for node in one["nodes"]]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def downloaded(page):
    with page.expect_download() as download:
        page.locator("#download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        masks = {
            name.removeprefix("masks/").removesuffix(".png"): np.asarray(Image.open(io.BytesIO(archive.read(name))))
            for name in archive.namelist()
            if name.startswith("masks/")
        }
        return masks, archive.read("results.csv").decode()


def test_from_upload_to_download(page, served, upload, painted):
    page.set_input_files("#upload input[type=file]", upload("image", *range(8)))
    page.locator("#status", has_text="8 images, 0 marked by you").wait_for()
    page.locator("#have-masks button").first.click()
    page.set_input_files("#masks input[type=file]", upload("mask", 0))
    page.locator("#status", has_text="8 images, 1 marked by you").wait_for()

    choose(page, 0)  # the first image chosen: its mask must be where it was
    page.locator("#save").click()
    assert ((downloaded(page)[0]["case0"] > 0) == painted[1][0]).all()

    page.locator("#images img").first.evaluate("image => image.untouched = true")
    choose(page, 1)
    assert page.locator("#images img").first.evaluate("image => image.untouched"), "a click would be lost"
    stroke(page, (0.45, 0.5), (0.55, 0.5))
    assert sorted(downloaded(page)[0]) == ["case0", "case1"]  # with what is painted and not saved
    page.locator("#status", has_text="8 images, 2 marked by you").wait_for()

    page.locator("#adapt", has_text="Learn from 2 marked images, segment all 8").click()
    page.locator("#status", has_text="8 segmented").wait_for()
    first, table = downloaded(page)
    assert sorted(first) == [f"case{number}" for number in range(8)]
    assert all(mask.shape == (64, 96) and set(np.unique(mask)) <= {0, 255} for mask in first.values())
    assert ((first["case0"] > 0) == painted[1][0]).all()
    assert first["case1"][32, 48] == 255
    assert 0 < (first["case1"] > 0).mean() < 0.2, "one stroke across a tenth of the canvas"
    assert table.count("yours") == 2
    assert table.count("predicted") == 6

    page.locator("#comparing button").first.click()
    choose(page, 1)
    page.locator("#comparison svg").nth(1).wait_for()
    assert page.locator("#comparison path").count() == 2
    page.locator("#word input, #word textarea").fill("mole <i>")
    page.locator("#empty", has_text="No mole <i> here").wait_for()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        require_accessible(page)
    page.set_viewport_size({"width": 1400, "height": 1200})

    choose(page, 2)
    stroke(page, (0.5, 0.4), (0.5, 0.6))
    page.locator("#save").click()
    page.locator("#status", has_text="learn again").wait_for()
    corrected, _ = downloaded(page)
    changed = corrected["case2"] != first["case2"]
    assert corrected["case2"][32, 48] == 255
    assert changed.mean() < 0.2, "a correction starts from what was found"
    page.locator("#adapt", has_text="Learn from 3 marked images").click()
    page.locator("#status", has_text="Check the least confident first").wait_for()
    second, table = downloaded(page)
    assert table.count("yours") == 3
    assert (second["case2"] == corrected["case2"]).all()
    page.locator("#estimated", has_text="Expected Dice").wait_for()

    assert page.elsewhere == []
    folder = served[1]
    assert list(folder.glob("session-*"))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("about:blank")
    _until(lambda: [path.name for path in folder.iterdir()] == ["lock"])


@pytest.mark.slow
def test_mistakes_show_a_one_sentence_error(page, upload, tmp_path):
    for name in ("broken.png", ".hidden.png"):
        (tmp_path / name).write_bytes(b"not an image")
    page.set_input_files("#upload input[type=file]", [*upload("image", *range(7)), tmp_path / "broken.png"])
    page.locator("#status", has_text="7 images").wait_for()
    page.get_by_text("broken.png").wait_for()
    choose(page, 0)
    page.locator("#save").click()
    page.get_by_text("Nothing is marked in case0").wait_for()
    stroke(page, (0.45, 0.5), (0.55, 0.5))
    page.set_input_files("#upload input[type=file]", [tmp_path / ".hidden.png"])
    page.get_by_text(".hidden.png is not in a supported format").wait_for()
    page.locator("#remove").click()
    page.locator("#status", has_text="6 images").wait_for()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)).save(tmp_path / "heavy.png")
    page.set_input_files("#upload input[type=file]", [tmp_path / "heavy.png"])
    page.get_by_text("heavy.png has 0.5 MB; the limit is 0.2 MB").wait_for()
    page.locator("#have-masks button").first.click()
    page.locator("#label input, #label textarea").fill("two")
    page.set_input_files("#masks input[type=file]", upload("mask", 1))
    page.get_by_text("Expected a label as a whole number").wait_for()
    page.locator("#label input, #label textarea").fill("")
    Image.new("L", (50, 50), 255).save(tmp_path / "case1.png")
    page.set_input_files("#masks input[type=file]", [tmp_path / "case1.png"])
    page.get_by_text("found 50×50 in the mask of case1").wait_for()
    assert page.locator("#adapt").is_disabled()
    assert page.locator("#status", has_text="6 images, 0 marked by you").count() == 1


@pytest.mark.slow
def test_two_users_do_not_see_each_other(page, browser, served, upload):
    page.set_input_files("#upload input[type=file]", upload("image", 0))
    page.locator("#status", has_text="1 image,").wait_for()
    other = browser.new_page()
    other.goto(served[0])
    other.locator("#status", has_text="No images yet").wait_for()
    other.set_input_files("#upload input[type=file]", upload("image", 1, 2))
    other.locator("#status", has_text="2 images").wait_for()
    assert page.locator("#images .grid-container button").count() == 1
    assert len(list(served[1].glob("session-*"))) == 2
    other.on("dialog", lambda dialog: dialog.accept())
    other.goto("about:blank")
    _until(lambda: len(list(served[1].glob("session-*"))) == 1)
    assert page.locator("#images .grid-container button").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("served", [["steps=10000"]], indirect=True)
def test_learning_can_be_cancelled(page, upload):
    page.set_input_files("#upload input[type=file]", upload("image", 0, 1))
    page.locator("#status", has_text="2 images").wait_for()
    page.locator("#have-masks button").first.click()
    page.set_input_files("#masks input[type=file]", upload("mask", 0))
    page.locator("#adapt", has_text="Learn from 1 marked image").click()
    page.locator("#adapt", has_text="Learn from 1 marked image").locator("..").get_by_text("learning").first.wait_for()
    page.locator("#stop:not([disabled])").click()
    page.get_by_text("the earlier result stays").wait_for()
    page.locator("#stop[disabled]").wait_for(state="attached")
    assert page.locator("#status", has_text="0 segmented").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("browser", [PHONE], indirect=True)
def test_a_finger_scribbles_on_a_phone_and_what_was_learnt_is_used_again(page, browser, served, upload):
    page.set_input_files("#upload input[type=file]", upload("image", *range(8)))
    page.locator("#status", has_text="8 images").wait_for()
    choose(page, 0)
    touched(page, (0.45, 0.5), (0.5, 0.5), (0.55, 0.5))
    page.locator('#editor button[aria-label="Color"]').tap()
    page.locator("#editor button.color").nth(1).tap()
    page.locator("#editor button.color").first.wait_for(state="detached")
    touched(page, (0.3, 0.6), (0.5, 0.62), (0.7, 0.6))
    page.locator("#save").tap()
    page.locator("#status", has_text="1 marked by you").wait_for()
    page.locator("#title", has_text="your scribbles").wait_for()
    require_accessible(page)
    page.locator("#adapt").tap()
    page.locator("#status", has_text="8 segmented").wait_for()
    masks, table = downloaded(page)
    assert table.count("predicted") == 8

    with page.expect_download() as kept:
        page.locator("#keep").tap()
    other = browser.new_page()
    other.goto(served[0])
    other.set_input_files("#upload input[type=file]", upload("image", 0))
    other.locator("#status", has_text="1 image,").wait_for()
    other.locator("#have-segmenter button").first.tap()
    (file := Path(kept.value.path())).rename(file.with_name("mine.safetensors"))
    other.set_input_files("#segmenter input[type=file]", file.with_name("mine.safetensors"))
    other.locator("#status", has_text="0 marked by you, 1 segmented").wait_for()
    assert (downloaded(other)[0]["case0"] != masks["case0"]).mean() < 0.01
