"""Laws of files: what is listed, which image belongs to which file, and how unreadable files are refused."""

import gzip
import os

import pytest
from refusals import refuses

from geoalign_hf.readers import files
from geoalign_hf.readers.files import (
    list_files,
    list_images,
    pair_images,
    parse_json,
    parse_numbers,
    read_text,
)
from geoalign_hf.readers.skipped import SkipReport


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_files_are_listed_below_subfolders_in_any_case_and_without_what_systems_add(tmp_path):
    touch(*[tmp_path / name for name in ("b.xml", "a/c.XML", "a/d.txt", "e.tif.aux.xml", ".hidden.xml",
                                         "._b.xml",
                                          "__MACOSX/b.xml", ".cache/f.xml")])  # fmt: skip
    (tmp_path / "folder.xml").mkdir()
    os.mkfifo(tmp_path / "pipe.xml")
    assert list_files(tmp_path, [".xml"]) == [tmp_path / "a" / "c.XML", tmp_path / "b.xml"]


def test_a_folder_without_such_files_is_refused(tmp_path):
    with refuses(str(tmp_path), ".xml"):
        list_files(tmp_path, [".xml"])
    with refuses(str(tmp_path), ".png", ".tif"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("file", "image"),
    [("a.xml", "a.tif"), ("x/a.xml", "x/a.JPG"), ("Annotations/a.xml", "JPEGImages/a.jpg"),
     ("a.xml", "deep/a.png"),
     ("train/a.xml", "a.png"), ("a.b.xml", "a.b.png"), ("A.xml", "a.png"),
     ("caf\u00e9.xml", "cafe\u0301.png")],
)  # fmt: skip
def test_a_file_is_paired_with_the_only_image_that_fits(tmp_path, file, image):
    root, folder = tmp_path / "files", tmp_path / "pictures"
    touch(root / file, folder / image, folder / "other.png")
    pairs, left = pair_images([root / file], root, folder, SkipReport())
    assert pairs == {root / file: folder / image} and left == [folder / "other.png"]
    assert pair_images([root / file], root / file, folder, SkipReport())[0] == pairs


def test_the_nearest_path_decides_between_equal_names(tmp_path):
    root, folder = tmp_path / "files", tmp_path / "pictures"
    names = ("train/a", "val/a", "a")
    touch(*[root / f"{name}.xml" for name in names], *[folder / f"{name}.png" for name in names])
    pairs, _ = pair_images(list_files(root, [".xml"]), root, folder, SkipReport())
    assert pairs == {root / f"{name}.xml": folder / f"{name}.png" for name in names}


@pytest.mark.parametrize(
    ("of_files", "of_images"),
    [(("a.xml",), ("a.png", "a.jpg")), (("x/a.xml", "y/a.xml"), ("a.png",)),
     (("a.xml",), ("x/a.png", "y/a.png")),
     (("labels/a.xml", "xml/a.xml"), ("images/a.png",))],
)  # fmt: skip
def test_what_could_be_paired_in_two_ways_is_refused(tmp_path, of_files, of_images):
    root, folder = tmp_path / "files", tmp_path / "pictures"
    touch(*[root / name for name in of_files], *[folder / name for name in of_images])
    listed = list_files(root, [".xml"])
    with refuses(str(listed[0]), str(folder / of_images[0])):
        pair_images(listed, root, folder, SkipReport())
    report = SkipReport(on_error="skip")
    assert pair_images(listed, root, folder, report) == ({}, [])
    assert set(report.count_kinds()) == {"ambiguous image"} or report.count_kinds().get("no image")


def test_a_file_without_an_image_is_refused(tmp_path):
    touch(tmp_path / "c.xml", tmp_path / "a.png")
    with refuses(str(tmp_path / "c.xml"), "'c'", "1 images"):
        pair_images([tmp_path / "c.xml"], tmp_path, tmp_path, SkipReport())


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:10] + b"\xff" * 9 + data[19:]])
def test_a_cut_or_corrupt_gz_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "a.json.gz"
    data = gzip.compress(b"[1, 2, 3]" * 9)
    path.write_bytes(data)
    assert read_text(path) == "[1, 2, 3]" * 9
    path.write_bytes(damage(data))
    with refuses(str(path), "cannot be read"):
        read_text(path)


def test_a_gz_that_expands_without_end_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b" " * 10**6))
    with refuses(str(tmp_path / "a.json.gz"), "limit"):
        read_text(tmp_path / "a.json.gz")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b" " * 1000))
    assert len(read_text(tmp_path / "b.json.gz")) == 1000


def test_a_file_that_is_too_large_or_a_pipe_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)  # takes no room on the disk
    os.mkfifo(tmp_path / "b.json")
    for name in ("a.json", "b.json"):
        with refuses(str(tmp_path / name)):
            read_text(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "[1" + "0" * 5000 + "]", "[1,", '{"a": 1, "a": 2}'],
    ids=["deep", "long", "cut", "twice"],
)
def test_json_that_python_cannot_hold_is_refused_by_name(text):
    with refuses("a.json", "JSON", "a list"):
        parse_json("a.json", text, "a list")


def test_numbers_are_what_a_person_would_call_so():
    assert parse_numbers(["1", "-2.5e1"]) == [1.0, -25.0]
    for text in ("1_0", "\u0661", "inf", "nan", "0x1", "", "1,5"):
        assert parse_numbers([text]) is None
