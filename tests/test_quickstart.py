"""The quickstart: what its scenes give away, and what its model and its picture reach."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_rows import draw_rows

BOUND = 0.93  # README.md has the measured value
ROOT = Path(__file__).parents[1]


def count_colours(rows: list[dict]) -> tuple[np.ndarray, list[str]]:
    """Count the colours in every box, 8 x 8 x 8 of them; return square roots of shares, and the concepts."""
    histograms, concepts = [], []
    for row in rows:
        for box, concept in zip(row["boxes"], row["concepts"], strict=True):
            codes = np.asarray(row["image"].crop(tuple(map(int, box)))).reshape(-1, 3) // 32 @ (64, 8, 1)
            histograms.append(np.sqrt(np.bincount(codes, minlength=512) / len(codes)))
            concepts.append(concept)
    return np.array(histograms), concepts


@pytest.mark.slow
def test_colours_alone_name_fewer_than_70_percent_of_the_boxes():
    linear_model = pytest.importorskip("sklearn.linear_model")
    seen, unseen = count_colours(draw_rows(600, seed=1000)), count_colours(draw_rows(150, seed=1))
    for strength in (1.0, 10.0, 100.0):
        classifier = linear_model.LogisticRegression(C=strength, max_iter=2000).fit(*seen)
        assert classifier.score(*unseen) < 0.7


@pytest.mark.slow
def test_the_quickstart_names_boxes_and_locates_phrases_of_unseen_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, str(ROOT / "examples" / "quickstart.py")], check=True, timeout=1800)
    written = json.loads((tmp_path / "outputs" / "quickstart" / "quickstart.json").read_text())
    results, names = written["results"], written["picture"]["names"]
    assert results["boxes named, after training"] >= BOUND
    assert results["boxes named, by the pipeline"] >= BOUND
    assert results["boxes named, in other words (plane, vessel, ...)"] >= BOUND - 0.05
    assert results["boxes named, before training"] < 0.5
    assert (
        results["phrases located among the boxes"] > 2 * results["phrases located among the boxes, by chance"]
    )
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    variables = {}
    exec(block[1], variables)  # what the README does with the model
    assert [best["label"] for (best,) in variables["answers"]] == ["road", "airplane"]
    assert names.count(False) <= 1 and written["picture"]["phrases"].count(False) <= 1
