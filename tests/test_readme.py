"""The README is true: its Python blocks run, in order, and its files exist."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.transform

from geoalign_hf.cli import OptionParser, find_function
from geoalign_hf_cli import VERBS

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run_in_order(folder, toy_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_quickstart(folder, toy_rows)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert len(names["answers"]) == 2
    assert names["out"].logits_per_region.shape == (1, 2, 2)


def make_quickstart(folder: Path, toy_rows: list[dict]) -> None:
    """Make what the quickstart leaves, with the tiny model of the tests."""
    shutil.copytree(folder, "outputs/quickstart/final")
    toy_rows[0]["image"].resize((207, 237)).save("outputs/quickstart/scene.png")


def test_the_python_blocks_of_each_guide_run(
    folder, coco_folder, hub, toy_rows, modules_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_quickstart(folder, toy_rows)
    shutil.copytree(coco_folder, "images")
    write_scene(Path("ortho.tif"), toy_rows[0]["image"])
    for guide in sorted((README.parent / "docs").glob("*.md")):
        names = {}
        for block in re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL):
            code = block.replace("boxes.json", "images/rows.json")
            code = code.replace('from_pretrained("you/harbors"', f'from_pretrained("{folder}"')
            exec(compile(code, str(guide), "exec"), names)
    assert ("model", "you/harbors") in hub.repositories


def test_every_guide_is_linked():
    guides = {f"docs/{guide.name}" for guide in (README.parent / "docs").glob("*.md")}
    assert guides == set(re.findall(r"\((docs/\w+\.md)\)", README.read_text()))


def test_the_readme_is_at_most_250_lines_long():
    assert len(README.read_text().splitlines()) <= 250


def write_scene(path: Path, image) -> None:
    """Write an image as a GeoTIFF."""
    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    profile = {"driver": "GTiff", "count": 3, "height": pixels.shape[1], "width": pixels.shape[2]}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500000, 5300000, 0.5, 0.5)}
    with rasterio.open(path, "w", dtype="uint8", photometric="RGB", **profile, **place) as file:
        file.write(pixels)


def list_commands() -> list[tuple[str, list[str]]]:
    """List the verbs and the words of all commands in README and guides that are written in full."""
    verbs = sorted(VERBS, key=len, reverse=True)
    found = []
    for text in [README, *sorted((README.parent / "docs").glob("*.md"))]:
        for block in re.findall(r"```bash\n(.*?)```", text.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                script = re.search(
                    r"(?:geoalign-hf|-m geoalign_hf|examples/(?=train\.py|adapt\.py))\s*(.*)", line
                )
                words = shlex.split(script[1].replace(".py ", " "), comments=True) if script else []
                verb = next((v for v in verbs if words[: len(v.split())] == v.split()), None)
                if verb and "..." not in words:
                    found.append((verb, words[len(verb.split()) :]))
    return found


@pytest.mark.parametrize(("verb", "words"), list_commands(), ids=lambda value: " ".join(value)[:60])
def test_every_command_takes_the_options_that_are_written(verb, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    OptionParser(verb, find_function(verb)).parse(words)


def test_every_file_that_is_named_exists():
    root = README.parent
    for name in re.findall(r"`((?:geoalign_hf|examples|tests)/[\w./]*)`", README.read_text()):
        assert (root / name).exists(), name
