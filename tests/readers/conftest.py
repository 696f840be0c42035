"""Two images of 20 x 10 pixels, a.png and b.png, that annotations refer to."""

import pytest
from call_counts import CountedKey
from PIL import Image

from geoalign_hf.readers import base


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        Image.new("RGB", (20, 10), colour).save(folder / name)
    return folder


@pytest.fixture
def draw():
    """Save a blank image of 20 x 10 pixels; folders are made."""

    def save(path, size=(20, 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        return path

    return save


@pytest.fixture
def counted_keys(monkeypatch):
    """Let the search for repeated regions be seen by `count_calls`."""
    identify = base._identify
    monkeypatch.setattr(base, "_identify", lambda *region: CountedKey(identify(*region)))
