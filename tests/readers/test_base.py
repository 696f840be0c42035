"""Laws of reading files: what cannot be read is told with its file."""

import gzip
import re

import pytest

from geoalign_hf.readers.files import parse_json, read_text


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:10] + b"\xff" * 9 + data[19:]])
def test_a_cut_or_corrupt_gz_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "a.json.gz"
    data = gzip.compress(b"[1, 2, 3]" * 9)
    path.write_bytes(data)
    assert read_text(path) == "[1, 2, 3]" * 9
    path.write_bytes(damage(data))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} cannot be read \(.*\)\. Give a whole file\.$"
    ):
        read_text(path)


@pytest.mark.parametrize("text", ["[" * 200_000, "[1" + "0" * 5000 + "]", "[1,"], ids=["deep", "long", "cut"])
def test_json_that_python_cannot_hold_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"^a\.json cannot be read as JSON \(.*\)\. Give a list\.$"):
        parse_json("a.json", text, "a list")
