"""Laws of the VOC reader: all relatives of Pascal VOC are read, and what is not understood is refused."""

import math

import pytest
from listed import read_voc
from refusals import refuses

from geoalign_hf.readers.skipped import SkipReport

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"
VOC = f"""<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size>
<object><name>ship</name><difficult>1</difficult>{BOX}</object>
<object><name>Golf_Course</name>
  <bndbox><xmin>5</xmin><ymin>1</ymin><xmax>9.5</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""
TURNED = f"<cx>8</cx><cy>5</cy><w>4</w><h>2</h><angle>{math.pi / 2}</angle>"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "xml" / "a.xml"
    path.parent.mkdir()
    path.write_text(VOC)
    return path


@pytest.fixture
def read(path, images):
    """Read one object that has this content besides a name, or a whole file."""

    def write_and_read(content: str, report: SkipReport | None = None, **options) -> dict:
        if not content.startswith("<?") and "annotation" not in content and "HRSC" not in content:
            content = f"<annotation><object><name>ship</name>{content}</object></annotation>"
        path.write_text(content)
        return read_voc(path.parent, images, report=report, **options)[0]

    return write_and_read


def test_objects_become_boxes_with_flags(path, images):
    (row,) = read_voc(path.parent, images)
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [5.0, 1.0, 9.5, 4.0]] and row["quads"] == []
    assert row["concepts"] == ["ship", "golf course"] and row["difficult"] == [True, False]


def test_boxes_that_count_from_one_start_a_pixel_earlier(path, images):
    assert read_voc(path, images, counts_from_one=True)[0]["boxes"][0] == [0.0, 1.0, 4.0, 6.0]


def test_a_box_that_begins_at_0_contradicts_counting_from_one(read, path):
    shape = "<bndbox><xmin>0</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"
    assert read(shape)["boxes"] == [[0.0, 2.0, 4.0, 6.0]]
    with refuses(str(path), "object 1", "begins at [0.0, 2.0]", "Omit --counts_from_one"):
        read(shape, counts_from_one=True)


def test_a_turned_box_becomes_its_four_corners(read):
    row = read(f"<robndbox>{TURNED}</robndbox>")
    assert row["quads"][0] == [pytest.approx(corner) for corner in ([9, 3], [9, 7], [7, 7], [7, 3])]
    assert row["boxes"][0] == pytest.approx([7, 3, 9, 7])


def test_an_oriented_box_beside_an_upright_one_is_taken(read):
    row = read(f"{BOX}<robndbox>{TURNED}</robndbox>")
    assert len(row["quads"]) == 1 and row["boxes"][0] == pytest.approx([7, 3, 9, 7])


def test_the_corners_of_dior_r_are_read(read):
    names = ("left_top", "right_top", "right_bottom", "left_bottom")
    corners = ((5, 1), (7, 3), (5, 5), (3, 3))
    numbers = "".join(
        f"<x_{name}>{x}</x_{name}><y_{name}>{y}</y_{name}>"
        for name, (x, y) in zip(names, corners, strict=True)
    )
    assert read(f"<robndbox>{numbers}</robndbox>")["quads"][0] == [list(corner) for corner in corners]


def test_polygons_become_quads_or_the_boxes_round_them(read):
    square = "<x1>5</x1><y1>1</y1><x2>7</x2><y2>3</y2><x3>5</x3><y3>5</y3><x4>3</x4><y4>3</y4>"
    assert read(f"<polygon>{square}</polygon>")["quads"] == [[[5, 1], [7, 3], [5, 5], [3, 3]]]
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((5, 1), (9, 3), (3, 8)))
    row = read(f"<polygon><username>me</username>{points}</polygon>")
    assert row["boxes"] == [[3, 1, 9, 8]] and row["quads"] == []
    assert read(f"{BOX}<polygon>{points}</polygon>")["boxes"] == [[1, 2, 4, 6]]


def test_a_namespace_and_upper_case_are_ignored(read):
    text = VOC.replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    assert len(read(text)["boxes"]) == 2
    assert read(VOC.replace("difficult", "Difficult"))["difficult"] == [True, False]


HRSC = """<HRSC_Image><Img_SizeWidth>20</Img_SizeWidth><Img_SizeHeight>10</Img_SizeHeight>
<Annotated>1</Annotated><HRSC_Objects><HRSC_Object><Class_ID>100000006</Class_ID><difficult>0</difficult>
<box_xmin>1</box_xmin><box_ymin>2</box_ymin><box_xmax>9</box_xmax><box_ymax>8</box_ymax>
<mbox_cx>8</mbox_cx><mbox_cy>5</mbox_cy><mbox_w>4</mbox_w><mbox_h>2</mbox_h><mbox_ang>{}</mbox_ang>
</HRSC_Object></HRSC_Objects></HRSC_Image>"""


def test_hrsc2016_is_read_as_turned_ships(read):
    row = read(HRSC.format(-math.pi / 2))
    assert row["concepts"] == ["ship"] and row["boxes"][0] == pytest.approx([7, 3, 9, 7])
    upright = HRSC[: HRSC.index("<mbox")] + HRSC[HRSC.index("</HRSC_Object>") :]
    assert read(upright)["boxes"] == [[1, 2, 9, 8]]


def test_an_image_that_nobody_annotated_is_not_an_image_without_regions(read):
    report = SkipReport()
    with refuses("not annotated"):
        read(HRSC.format(0).replace("<Annotated>1", "<Annotated>0"), report)


FAIR1M = """<annotation><source><filename>a.png</filename></source>
<size><width>20</width><height>10</height></size>
<objects><object><coordinate>pixel</coordinate><type>rectangle</type>
<possibleresult><name>Boeing737</name></possibleresult>
<points><point>5.0,1.0</point><point>7.0,3.0</point><point>5,5</point><point>3,3</point><point>5.0,1.0</point>
</points></object></objects></annotation>"""


def test_fair1m_is_read_as_quads(read):
    row = read(FAIR1M)
    assert row["concepts"] == ["boeing737"] and row["quads"] == [[[5, 1], [7, 3], [5, 5], [3, 3]]]
    with refuses("object 1", "'geographic'"):
        read(FAIR1M.replace(">pixel<", ">geographic<"))


@pytest.mark.parametrize(
    "text",
    [f"<annotations><object><name>ship</name>{BOX}</object></annotations>", "<PAMDataset/>", "<kml></kml>",
     f"<annotation><items><object><name>ship</name>{BOX}</object></items></annotation>",
     f"<annotation><shapes><item>{BOX}</item></shapes></annotation>",
     "<HRSC_Image><HRSC_Object/></HRSC_Image>"],
)  # fmt: skip
def test_xml_whose_objects_are_elsewhere_is_refused_by_its_tags(path, images, text):
    path.write_text(text)
    with refuses(str(path), "<"):
        read_voc(path, images)


def test_xml_without_objects_is_an_image_without_regions(read):
    fields = "<folder>x</folder><source><database>y</database></source><segmented>0</segmented>"
    assert read(f"<annotation>{fields}</annotation>")["boxes"] == []


@pytest.mark.parametrize(("text", "flag"), [("0", False), ("1", True), ("true", True), ("2", True),
                                            ("False", False),
                                            ("", False)])  # fmt: skip
def test_difficult_is_read_in_numbers_and_words(read, text, flag):
    assert read(f"<difficult>{text}</difficult>{BOX}")["difficult"] == [flag]


@pytest.mark.parametrize(
    "content",
    ["", "<difficult>often</difficult>" + BOX, "<difficult>0</difficult><difficult>1</difficult>" + BOX,
     BOX + BOX, "<name>boat</name>" + BOX, BOX.replace("<xmin>1</xmin>", ""), BOX.replace(">1<", ">one<"),
     BOX.replace("<xmin>1</xmin>", "<xmin>1</xmin><xmin>2</xmin>"), BOX.replace(">1<", ">nan<"),
     BOX.replace("</bndbox>", "<angle>0.3</angle></bndbox>"),
     BOX + "<angle>0.3</angle>", BOX.replace(">4<", ">0<"),
     f"<robndbox>{TURNED.replace('<angle>', '<angle>9')}</robndbox>", "<points><point>1,2,3</point></points>",
     f"<robndbox>{TURNED.replace('<w>4', '<w>-4')}</robndbox>",
     "<points><point>1,2</point><point>3,4</point></points>",
     "<polygon><x1>1</x1><y1>2</y1><x2>3</x2></polygon>", BOX.replace("1<", ".1<").replace("4<", ".9<")
     .replace("2<", ".2<").replace("6<", ".6<")],
)  # fmt: skip
def test_an_object_that_is_not_understood_is_refused_with_its_number(read, path, content):
    with refuses(f"{path}: object 1"):
        read(content)


def test_a_nameless_object_is_refused(path, images):
    path.write_text(VOC.replace("<name>ship</name>", ""))
    with refuses(f"{path}: object 1", "name"):
        read_voc(path, images)


def test_what_is_deleted_or_a_part_is_reported(read):
    report = SkipReport()
    assert read(f"<deleted>1</deleted>{BOX}", report)["boxes"] == []
    assert len(read(f"{BOX}<part><name>bow</name>{BOX}</part>", report)["boxes"]) == 1
    assert report.count_kinds() == {"deleted": 1, "part": 1}


@pytest.mark.parametrize("tag", ["rbox", "rotated_bndbox", "obb", "segmentation", "Mask", "corners"])
def test_a_shape_of_an_unknown_name_beside_a_box_is_reported(read, tag):
    report = SkipReport()
    assert len(read(f"{BOX}<{tag}>1 2 3 4 0.5</{tag}><pose>left</pose><{tag}/>", report)["boxes"]) == 1
    assert report.count_kinds() == {"other shape": 1} and tag.lower() in report.entries[0]["message"]


@pytest.mark.parametrize(
    ("size", "fact"),
    [("<width>30</width><height>10</height>", "30 x 10"), ("<width>x</width><height>10</height>", "'x'"),
     ("<width>-20</width><height>10</height>", "'-20'"),
     ("<width>20</width><width>9</width><height>10</height>", "size/width")],
)  # fmt: skip
def test_a_size_that_is_wrong_is_refused(path, images, size, fact):
    path.write_text(VOC.replace("<width>20</width><height>10</height>", size))
    with refuses(str(path), fact):
        read_voc(path, images)


def test_a_size_of_zero_is_taken_for_unknown(path, images):
    path.write_text(VOC.replace("<width>20</width>", "<width>0</width>"))
    assert len(read_voc(path, images)[0]["boxes"]) == 2


def test_cut_xml_and_entities_are_refused(path, images):
    path.write_text(VOC[:200])
    with refuses(str(path), "xml", "line", "column"):
        read_voc(path, images)
    path.write_text('<!DOCTYPE a [<!ENTITY b "ship">]>' + VOC.replace(">ship<", ">&b;<"))
    with refuses(str(path), "entities"):
        read_voc(path, images)
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "ship">]>' + VOC
    path.write_bytes(text.encode("utf-16"))
    with refuses(str(path), "entities"):
        read_voc(path, images)


def test_the_rotation_that_cvat_writes_beside_a_box_turns_it(read):
    box = "<bndbox><xmin>5</xmin><ymin>4</ymin><xmax>15</xmax><ymax>6</ymax></bndbox>"
    attribute = "<attributes><attribute><name>{}</name><value>{}</value></attribute></attributes>"
    row = read(box + attribute.format("rotation", 90))
    assert row["boxes"] == [pytest.approx([9, 0, 11, 10])] and len(row["quads"]) == 1
    for name, value in (("rotation", "0.0"), ("colour", "90"), ("rotation", "")):
        assert read(box + attribute.format(name, value))["quads"] == []
    for value in ("45,5", "nan", "400", "left"):
        with refuses("a.xml", "object 1", "rotation", value):
            read(box + attribute.format("rotation", value))


@pytest.mark.parametrize("flag", ["ignore", "iscrowd", "crowd", "is_crowd", "Ignored", "isGroup"])
def test_objects_that_are_no_single_region_are_unboxed(read, flag):
    report = SkipReport()
    row = read(f"{BOX}<{flag}>1</{flag}>", report)
    assert row["boxes"] == [] and row["unboxed"] == ["ship"] and flag.lower() in report.entries[0]["message"]
    assert read(f"{BOX}<{flag}>0</{flag}>")["concepts"] == ["ship"]


def test_the_size_that_labelme_states_is_compared_with_the_image(read):
    size = "<imagesize><nrows>{}</nrows><ncols>20</ncols></imagesize>"
    content = f"<annotation>{size}<object><name>ship</name>{BOX}</object></annotation>"
    assert read(content.format(10))["concepts"] == ["ship"]
    with refuses("a.xml", "20 x 12"):
        read(content.format(12))
