"""Reading JSON entry by entry gives what json.loads gives, in memory that does not grow with the file."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listed import read_coco
from PIL import Image
from refusals import refuses

from geoalign_hf.readers import coco, files, json_stream
from geoalign_hf.readers.json_stream import iterate_entries
from geoalign_hf.readers.skipped import SkipReport

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def collect(path) -> dict:
    """Put the entries of a file together again."""
    content = {}
    for key, number, value in iterate_entries(path, "an object"):
        if number is None:
            content[key] = value
        elif number == -1:
            content[key] = []
        else:
            assert number == len(content[key])
            content[key].append(value)
    return content


@settings(max_examples=200)
@given(
    content=st.dictionaries(st.text(), VALUES, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    name=st.sampled_from(["a.json", "a.json.gz"]),
)
def test_the_entries_are_those_of_the_object(tmp_path_factory, content, chunk, indent, ascii, name):
    path = tmp_path_factory.mktemp("json") / name
    text = json.dumps(content, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        assert collect(path) == content


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "expected {"),
        ("[1]", "found '['"),
        ('{"a": [1, 2', "expected , or ]"),
        ('{"a": [1,]}', "a[1]"),
        ('{"a": [{"b": tru}]}', "a[0]"),
        ('{"a": [1 2]}', "a[0]"),
        ('{"a": [{"b": 1, "b": 2}]}', "repeats the keys ['b']"),
        ('{"a": 1, "a": 2}', "'a' is repeated"),
        ('{"a": 1,}', "near '}'"),
        ('{"a": 1} x', "'x' follows"),
        ("{1: 2}", "the key 1"),
        ('{"a": "b', "Unterminated"),
        ('{"a": ' + "[" * 200_000, "recursion"),
        ('{"a": [1' + "0" * 5000 + "]}", "a[0]"),
    ],
    ids=range(14),
)
def test_what_is_not_one_object_is_refused_by_name_and_place(tmp_path, text, fact):
    path = tmp_path / "a.json"
    path.write_text(text)
    with refuses(str(path), fact, "Give an object"):
        collect(path)


def test_a_cut_file_and_a_gz_that_expands_without_end_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.json.gz"
    data = gzip.compress(json.dumps({"a": list(range(1000))}).encode())
    path.write_bytes(data[:-9])
    with refuses(str(path), "ended"):
        collect(path)
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    path.write_bytes(gzip.compress(b'{"a": [' + b" " * 10**6 + b"]}"))
    with refuses(str(path), "more characters"):
        collect(path)


def test_an_entry_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MAX_ENTRY", 1000)
    path = tmp_path / "a.json"
    path.write_text('{"a": ["' + "x" * 10**5)
    with refuses(str(path), "a[0]", "Unterminated"):
        collect(path)


def measure_reading(folder, number: int) -> int:
    """Return the peak of Python's memory while a COCO file of some images with ten boxes each is read."""
    folder.mkdir()
    boxes = [{"bbox": [1, 2, 3 + k, 4], "category_id": 0} for k in range(10)]
    images = [{"id": i, "file_name": f"{i}.bmp"} for i in range(number)]
    annotations = [
        box | {"id": 10 * i + k, "image_id": i} for i in range(number) for k, box in enumerate(boxes)
    ]
    content = {"annotations": annotations, "images": images, "categories": [{"id": 0, "name": "ship"}]}
    (folder / "coco.json").write_text(json.dumps(content))
    Image.new("RGB", (20, 10)).save(folder / "0.bmp")
    for i in range(1, number):
        (folder / f"{i}.bmp").hardlink_to(folder / "0.bmp")
    del images, annotations, content
    tracemalloc.start()
    assert sum(1 for _ in coco.read_coco(folder / "coco.json")) == number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_memory_of_reading_coco_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 10_000)
    first, second = measure_reading(tmp_path / "a", 50), measure_reading(tmp_path / "b", 550)
    assert second - first < 500 * 300  # bytes; the file has 900 and its objects 7,000 per image


def test_a_file_that_breaks_off_is_skipped_as_a_whole(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [')
    report = SkipReport("skip")
    with refuses("no images that can be used", "annotations"):
        read_coco(tmp_path / "a.json", tmp_path, report=report)
    assert report.count_kinds() == {"bad file": 1}
