"""Laws of the DOTA reader: lines become quads with flags, and a wrong line is refused with its place."""

import pytest
from call_counts import count_calls
from listed import read_dota
from refusals import refuses

from geoalign_hf.data.schema import FEATURES, build_rows
from geoalign_hf.readers.skipped import SkipReport

DOTA = """imagesource:GoogleEarth
gsd:0.26
1 2 4 2 4 6 1 6 small-vehicle 0
10 1 14 5 12 7 8 3 plane 1

1 7 3 7 3 9 1 9 plane
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "labelTxt" / "a.txt"
    path.parent.mkdir()
    path.write_text(DOTA)
    return path


def test_lines_become_quads_with_flags(path, images):
    (row,) = read_dota(path.parent, images)
    assert row["concepts"] == ["small vehicle", "plane", "plane"]
    assert row["quads"][1] == [[10.0, 1.0], [14.0, 5.0], [12.0, 7.0], [8.0, 3.0]]
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [8.0, 1.0, 14.0, 7.0], [1.0, 7.0, 3.0, 9.0]]
    assert row["difficult"] == [False, True, False]
    assert build_rows([row]).features == FEATURES


def test_difficult_regions_can_be_dropped_and_stay_known(path, images):
    report = SkipReport()
    (row,) = read_dota(path, images, drop_difficult=True, report=report)
    assert row["concepts"] == ["small vehicle", "plane"] and row["unboxed"] == ["plane"]
    assert report.count_kinds() == {"difficult": 1} and f"{path} line 4" in report.entries[0]["message"]


def test_a_file_without_regions_is_an_image_without_regions(path, images):
    path.write_text("acquisition dates:2018-02-01\nimagesource:GoogleEarth\nGSD:null\n")
    (row,) = read_dota(path, images)
    assert row["boxes"] == row["quads"] == row["captions"] == []


@pytest.mark.parametrize(
    "line", ["1 2 4 2 4 6 1 6", "1 2 4 2 4 6 1", "1 2 4 2 4 6 1 x ship 0", "1 2 4 2 4 6 1 nan ship 0",
             "hello", "1 2 4 2 4 6 1 6 ship 7", "1 2 4 2 4 6 1 6 large ship 0", "1_0 2 4 2 4 6 1 6 ship 0"]
)  # fmt: skip
def test_a_line_of_another_form_is_refused(path, images, line):
    path.write_text(f"gsd:1\n\n{line}\n")
    with refuses(f"{path} line 3", repr(line), "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"):
        read_dota(path, images)


@pytest.mark.parametrize(
    ("line", "fact"),
    [("1 1 5 5 5 1 1 5 ship 0", "sides that cross"), ("1 2 4 2 4 6 1 6 _ 0", "no letters"),
     ("1e200 2 4 2 4 6 1 6 ship 0", "beyond"), ("0 0 .5 0 .5 .5 0 .5 ship 0", "fractions")],
)  # fmt: skip
def test_a_line_that_is_not_a_region_is_refused(path, images, line, fact):
    path.write_text(DOTA + line)
    with refuses(f"{path} line 7", fact):
        read_dota(path, images)


def test_a_name_that_is_not_allowed_is_refused_with_its_line(path, images):
    with refuses(f"{path} line 3", "small-vehicle", "['plane', 'ship']"):
        read_dota(path, images, concepts=["ship", "plane"])
    assert read_dota(path, images, concepts=["Small_Vehicle", "Plane"])[0]["concepts"][0] == "small vehicle"


def test_a_quad_that_begins_at_another_corner_is_the_same_region(path, images):
    path.write_text("1 2 4 2 4 6 1 6 ship 0\n4 6 1 6 1 2 4 2 Ship 0\n")
    report = SkipReport()
    assert len(read_dota(path, images, report=report)[0]["quads"]) == 1
    assert report.count_kinds() == {"repeated region": 1}


def test_another_encoding_is_refused_with_its_line_and_a_byte_order_mark_is_ignored(path, images):
    path.write_bytes("gsd:1\n1 2 4 2 4 6 1 6 caf\u00e9 0\n".encode("latin-1"))
    with refuses(f"{path} line 2", "UTF-8"):
        read_dota(path, images)
    path.write_bytes(b"\xef\xbb\xbf" + DOTA.encode())
    assert len(read_dota(path, images)[0]["boxes"]) == 3


def test_an_image_that_cannot_be_read_is_refused_by_name(path, images):
    (images / "a.png").write_bytes(b"no image")
    with refuses(str(images / "a.png")):
        read_dota(path, images)
    with refuses(str(path), "{'bad image': 1}", str(images / "a.png")):  # the first reason is in the message
        read_dota(path, images, report=SkipReport(on_error="skip"))


def test_ten_times_the_quads_of_an_image_take_about_ten_times_the_calls(path, images, counted_keys):
    counts = []
    for number in (300, 3_000):
        lines = [f"{i % 1000 / 100} {i // 1000 / 100} 19 1 19 2 1 2 ship 0" for i in range(number)]
        lines[200] = "1 1 1 1 1 1 1 1 ship 0"
        path.write_text("\n".join(lines))
        report = SkipReport(on_error="skip")
        rows = []
        counts.append(
            count_calls(lambda report=report, rows=rows: rows.extend(read_dota(path, images, report=report)))
        )
        assert len(rows[0]["quads"]) == number - 1
        assert f"{path} line 201" in report.entries[0]["message"]
    assert 5 * counts[0] < counts[1] < 11 * counts[0]  # a quadratic reader makes 100 times as many
