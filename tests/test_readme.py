"""The README is true: its Python blocks run, in order, and its files exist."""

import re
import shutil
from pathlib import Path

from geoalign_hf.dataset_builder.build import BuildConfig, build

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run_in_order(folder, coco_folder, hub, toy_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "outputs/train/final")
    build(BuildConfig("outputs/rows", coco=str(coco_folder / "rows.json")))
    toy_rows[0]["image"].resize((640, 480)).save("harbor.png")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        # The tiny model of the tests stands in for a repository on the Hub.
        exec(compile(block.replace("you/geoalign-clip-base", str(folder)), str(README), "exec"), names)
    assert names["out"].logits_per_region.shape == (1, 2, 2)
    pushed = {("model", "you/harbors"), ("dataset", "you/rows"), ("model", "you/piers")}
    assert set(hub.repositories) == pushed


def test_every_file_that_is_named_exists():
    root = README.parent
    for name in re.findall(r"`((?:geoalign_hf|examples|tests)/[\w./]*)`", README.read_text()):
        assert (root / name).exists(), name
