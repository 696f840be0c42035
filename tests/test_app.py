"""The page to try a model: its functions, and the page itself in a browser."""

import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")
APP = Path(__file__).parents[1] / "geoalign_hf" / "hub" / "space" / "app.py"


@pytest.fixture(scope="module")
def app():
    return runpy.run_path(str(APP))


@pytest.fixture(scope="module")
def page(app, folder):
    return app["Page"](str(folder))


@pytest.fixture
def drawn(toy_rows, tmp_path):
    """What the component gives for the first toy row with all of its boxes."""
    row, sides = toy_rows[0], ("xmin", "ymin", "xmax", "ymax")
    row["image"].save(tmp_path / "scene.png")
    boxes = [dict(zip(sides, map(round, box), strict=True)) for box in row["boxes"]]
    return {"image": str(tmp_path / "scene.png"), "boxes": boxes, "orientation": 0}


def test_every_drawn_box_gets_a_name_and_scores_that_sum_to_one(page, drawn):
    named, table = page.name_boxes(drawn, "ship, road\nstorage tank, ship")
    assert len(named["boxes"]) == len(drawn["boxes"])
    assert [box["xmin"] for box in named["boxes"]] == [box["xmin"] for box in drawn["boxes"]]
    assert len(table) == 3 * len(drawn["boxes"])
    assert sum(score for n, _, score in table if n == 1) == pytest.approx(1, abs=0.002)


def test_a_heat_map_covers_the_image_and_is_red_where_the_phrase_is_likely(app, page, drawn):
    class Sure:
        def __call__(self, image, boxes, candidate_labels):
            return [
                [
                    {"label": label, "score": float((label == "ship") == (box[0] >= 128))}
                    for label in candidate_labels
                ]
                for box in boxes
            ]

    sure = object.__new__(app["Page"])
    sure.classify = Sure()
    Image.new("RGB", (256, 128), "gray").save(drawn["image"])
    heat = np.asarray(sure.draw_heat(drawn["image"], "ship", "road, water"), int)
    assert heat.shape == (128, 256, 3)
    redness = heat[..., 0] - heat[..., 2]
    assert redness[:, 200:].min() > 200 and abs(redness[:, :80]).max() == 0


def test_windows_cover_every_pixel(app):
    for size in ((40, 30), (301, 163), (8, 500)):
        covered = np.zeros(size[::-1], bool)
        for x0, y0, x1, y1 in app["list_windows"](*size):
            assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
            covered[y0:y1, x0:x1] = True
        assert covered.all()


@pytest.mark.slow
def test_an_archive_is_searched_by_words(app, folder, coco_folder, tmp_path):
    command = [sys.executable, "-m", "geoalign_hf", "embed", str(coco_folder), "--model", str(folder)]
    command += ["--coco", str(coco_folder / "rows.json"), "--output_dir", str(tmp_path / "embeds")]
    subprocess.run(command, check=True, capture_output=True)
    found = app["Page"](str(folder), str(tmp_path / "embeds"), str(coco_folder)).search("a ship")
    cosines = [float(caption.split()[0]) for _, caption in found]
    assert len(found) == app["NUM_FOUND"] and cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize(
    ("change", "labels", "fact"),
    [
        ({"image": None}, "ship", "no image"),
        ({"boxes": []}, "ship", "no boxes"),
        ({}, " , ", "no labels"),
        ({"boxes": [{"xmin": 9, "ymin": 9, "xmax": 9, "ymax": 30}]}, "ship", "box"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(app, page, drawn, change, labels, fact, monkeypatch):
    messages = []
    monkeypatch.setattr(gr, "Warning", lambda message, title: messages.append(message))
    app["show_errors"](page.name_boxes)(drawn | change, labels)
    assert len(messages) == 1 and fact in messages[0]


@pytest.mark.parametrize("size", [(5000, 3000), (3001, 9)])
def test_a_heat_map_of_a_large_image_is_smaller_and_still_covers_it(app, size, tmp_path):
    Image.new("RGB", size, "gray").save(tmp_path / "large.png")
    even = object.__new__(app["Page"])

    def classify(image, boxes, candidate_labels):
        assert max(image.size) == 1600 and np.max(boxes) <= 1600  # windows of the large image take gigabytes
        return [[{"label": "ship", "score": 1.0}] for _ in boxes]

    even.classify = classify
    heat = np.asarray(even.draw_heat(str(tmp_path / "large.png"), "ship", "road"))
    assert max(heat.shape) == 1600 and (heat == (255, 60, 20)).all()


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_file_that_is_no_image_is_a_message_on_both_tabs(app, page, drawn, content, monkeypatch):
    messages = []
    monkeypatch.setattr(gr, "Warning", lambda message, title: messages.append(message))
    Path(drawn["image"]).write_bytes(content)
    app["show_errors"](page.name_boxes)(drawn | {"boxes": []}, "ship")
    app["show_errors"](page.draw_heat)(drawn["image"], "ship", "road")
    assert len(messages) == 2 and all("cannot be read as an image" in message for message in messages)


def test_an_image_of_too_many_pixels_is_a_message(page, drawn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        page.draw_heat(drawn["image"], "ship", "road")


def test_a_component_passes_every_file_as_it_is(app, page):
    """Otherwise the component itself fails on a file that is no image, and the page shows no message."""
    images = [each for each in app["build_page"](page).blocks.values() if isinstance(each, gr.Image)]
    payload = gr.image_utils.ImageData(path="/no/image.txt", orig_name="image.txt")
    assert images[0].label == "Image" and images[0].preprocess(payload) == "/no/image.txt"


def test_a_16_bit_image_is_refused_by_name(page, drawn):
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(drawn["image"])
    with pytest.raises(ValueError, match="16"):
        page.name_boxes(drawn, "ship, road")


@pytest.fixture
def server(folder, tmp_path):
    """The page, served by a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(APP), "--model", str(folder), "--port", str(port)]
    log = (tmp_path / "app.log").open("w")
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "app.log").read_text()
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait()
    log.close()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's package chromium")
def test_a_visitor_draws_a_box_and_reads_its_name(server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 1000})
        tab.set_default_timeout(60_000)
        tab.goto(server)
        tab.get_by_role("button", name="Name the boxes").click()
        tab.get_by_text("There are no boxes").wait_for()
        tab.screenshot(path=shots / "mistake.png")

        canvas = tab.locator("canvas").first
        place = canvas.bounding_box()
        x, y = (place[side] + place[length] / 2 for side, length in (("x", "width"), ("y", "height")))
        tab.mouse.move(x - 40, y - 40)
        tab.mouse.down()
        tab.mouse.move(x + 40, y + 40, steps=8)
        tab.mouse.up()
        tab.locator("#labels textarea").fill("storage tank, road")
        tab.get_by_role("button", name="Name the boxes").click()
        tab.locator("#scores").get_by_text("road").first.wait_for()
        assert tab.locator("#scores").get_by_text("storage tank").count() >= 1
        tab.screenshot(path=shots / "named.png")

        tab.set_viewport_size({"width": 390, "height": 844})
        tab.get_by_role("tab", name="Find a phrase").click()
        tab.get_by_role("button", name="Find it").click()
        tab.locator("#heat img").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        tab.screenshot(path=shots / "narrow.png", full_page=True)
        browser.close()
