"""The page of ``ipt-fast app`` as a person meets it, in a real browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_fast import restore

pytest.importorskip("gradio", reason="needs the extra app, in an environment of its own")
sync_playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright").sync_playwright
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH")]

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_PIXELS = 20_000
WAIT = 120_000  # milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve the page; afterwards it has ended as a command should, said nothing of its own, and left no file."""
    place, log = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("log") / "stderr"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ["--max-pixels", str(MAX_PIXELS), "--max-upload", "1", "--precision", "fp32"]
    command = [sys.executable, "-m", "ipt_fast.cli", "app", "--port", str(port), *limits]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            line = process.stdout.readline()
            assert re.match(rf"open http://127\.0\.0\.1:{port}/ in a browser", line), log.read_text()
            yield f"http://127.0.0.1:{port}/", place
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            process.kill()
            process.wait()
    assert log.read_text() == "ipt-fast app: stopped by SIGTERM\n"
    assert not [path for path in place.iterdir() if not path.name.startswith("torchinductor")]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def page(request, browser, server):
    """Open the page at two widths; it must ask nobody but its own server."""
    address, asked = server[0], []
    context = browser.new_context(viewport={"width": request.param, "height": 844}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("request", lambda call: asked.append(call.url))
    page.goto(address)
    for part in ("restore", "said", "slider", "download"):  # they come in any order
        page.wait_for_selector(f"#{part}", state="attached")
    yield page
    picture(page, f"{request.param}_{request.node.name}")
    context.close()
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def picture(page, name):
    folder = os.environ.get("IPT_FAST_SCREENSHOTS")
    if folder and not page.is_closed():
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def give(page, path, answer):
    """Choose a file, and wait for what the page says to it."""
    page.set_input_files("#photo input[type=file]", path)
    page.wait_for_function("text => document.querySelector('#said').innerText.includes(text)", arg=answer)


def wait_for_answer(page, width):
    """Wait until both pictures are there, and all of the slider lies within the window."""
    page.wait_for_function(
        "w => [...document.querySelectorAll('#slider img')].filter(i => i.naturalWidth == w).length == 2", arg=width
    )
    page.wait_for_function(
        """() => {
            const box = document.querySelector('#slider').getBoundingClientRect();
            return box.height > 100 && box.top > -1 && box.bottom < window.innerHeight + 1;
        }"""
    )


def is_ready(page) -> bool:
    return page.is_enabled("#restore")


def photo(path, size=(120, 90)):
    Image.effect_noise(size, 40).convert("RGB").save(path)
    return path


def test_a_photo_is_restored_compared_and_downloaded(page, server, tmp_path):
    path = photo(tmp_path / "my photo.png")
    assert not is_ready(page) and not page.is_enabled("#download")
    give(page, path, "my photo.png: 120 × 90 pixels.")
    page.get_by_label("Remove noise (σ 30)").check()
    page.click("#restore")
    page.wait_for_function("document.querySelector('#said').innerText.includes('120 × 90 → 120 × 90')")
    wait_for_answer(page, 120)
    box = page.locator("#slider").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "out.png")
    assert waiting.value.suggested_filename == "my photo_denoise30.png"
    expected = restore(None, np.array(Image.open(path)), "denoise30")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert len([file for file in server[1].rglob("*.png") if file.name == "after.png"]) == 1
    page.context.close()
    left = time.monotonic() + WAIT / 1000
    while [file for file in server[1].rglob("*.png") if file.is_file()] and time.monotonic() < left:
        time.sleep(0.1)
    assert not [file for file in server[1].rglob("*") if file.is_file()]


def test_the_divider_moves(page, tmp_path):
    give(page, photo(tmp_path / "a.png", (90, 120)), "90 × 120")
    page.click("#restore")
    wait_for_answer(page, 180)
    before = page.locator("#slider").screenshot()
    box = page.locator("#slider img").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 5, middle, steps=5)
    page.mouse.up()
    assert page.locator("#slider").screenshot() != before


@pytest.mark.parametrize(
    "name, make, said",
    [
        ("broken.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n nothing"), "broken.png cannot be opened"),
        ("wide.png", lambda path: photo(path, (300, 200)), "wide.png is too large: 300 × 200 pixels"),
        (
            "bomb.png",
            lambda path: Image.new("1", (20_000, 10_000)).save(path),
            "bomb.png has far too many pixels; up to 0.02 megapixels",
        ),
        ("<i>.png", lambda path: path.write_bytes(b"no"), ".png cannot be opened: not an image."),
    ],
    ids=["broken", "wide", "bomb", "markup"],
)
def test_what_cannot_be_taken_is_said(name, make, said, page, tmp_path):
    make(tmp_path / name)
    give(page, tmp_path / name, said)
    assert not is_ready(page) and "Traceback" not in page.content()
    give(page, photo(tmp_path / "good.png"), "good.png: 120 × 90")
    assert is_ready(page)


def test_a_file_over_the_upload_limit_is_said(page, tmp_path):
    (tmp_path / "heavy.png").write_bytes(os.urandom(2**21))
    page.set_input_files("#photo input[type=file]", tmp_path / "heavy.png")
    page.get_by_text(re.compile("maximum allowed size|too large", re.IGNORECASE)).first.wait_for()
    assert not is_ready(page)
