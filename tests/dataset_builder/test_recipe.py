"""A recipe reads every source in the layout of its authors, with one vocabulary, and says what is missing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from geoalign_hf.captioning.vocabulary import is_broader, load_vocabulary, may_be_same
from geoalign_hf.dataset_builder.build import BuildConfig, build, run_build
from geoalign_hf.dataset_builder.leakage import collect_sets
from geoalign_hf.dataset_builder.recipe import RECIPES, load_recipe, read_sources, select_sources
from geoalign_hf.readers.skipped import SkipReport

BOX, QUAD = (8, 10, 30, 24), (8, 10, 30, 10, 30, 24, 8, 24)


def draw(path: Path, seed: int = 0) -> None:
    """Draw a small picture that looks like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_dior(root: Path) -> None:
    for number, split in ((1, "train"), (2, "val"), (11726, "test")):
        name, folder = f"{number:05d}", "test" if split == "test" else "trainval"
        draw(root / f"DIOR/JPEGImages-{folder}/{name}.jpg", number)
        write(root / f"DIOR/ImageSets/Main/{split}.txt", f"{name}\n")
        corners = ("left_top", "right_top", "right_bottom", "left_bottom")
        tags = [f"{axis}_{corner}" for corner in corners for axis in "xy"]
        box = "".join(f"<{tag}>{n}</{tag}>" for tag, n in zip(tags, QUAD, strict=True))
        write(
            root / f"DIOR/Annotations/Oriented Bounding Boxes/{name}.xml",
            f"<annotation><object><name>storagetank</name><robndbox>{box}</robndbox></object></annotation>",
        )


def write_dota(root: Path, version: str = "2.0", name: str = "P0001") -> None:
    quad = " ".join(map(str, QUAD))
    for split in ("train", "val"):
        draw(root / f"DOTA-v{version}/{split}/images/{name}_{split}.png", 20 + len(split))
        text = f"imagesource:GoogleEarth\ngsd:0.1\n{quad} plane 0\n{quad} soccer-ball-field 1\n"
        write(root / f"DOTA-v{version}/{split}/labelTxt/{name}_{split}.txt", text)


def write_fair1m(root: Path) -> None:
    for part in (1, 2):
        draw(root / f"FAIR1M/train/part{part}/images/{part}.tif", 30 + part)
        points = "".join(f"<point>{x},{y}</point>" for x, y in zip(QUAD[::2], QUAD[1::2], strict=True))
        write(
            root / f"FAIR1M/train/part{part}/labelXml/{part}.xml",
            f"<annotation><source><filename>{part}.tif</filename></source><objects><object>"
            "<coordinate>pixel</coordinate><possibleresult><name>Boeing737</name></possibleresult>"
            f"<points>{points}<point>{QUAD[0]},{QUAD[1]}</point></points></object></objects></annotation>",
        )


def write_hrsc2016(root: Path) -> None:
    for name, split in (("100000001", "train"), ("100000002", "test")):
        draw(root / f"HRSC2016/FullDataSet/AllImages/{name}.bmp", int(name[-1]) + 40)
        write(root / f"HRSC2016/ImageSets/{split}.txt", name)
        numbers = zip(("cx", "cy", "w", "h", "ang"), (19, 17, 22, 14, 0), strict=True)
        box = "".join(f"<mbox_{tag}>{n}</mbox_{tag}>" for tag, n in numbers)
        write(
            root / f"HRSC2016/FullDataSet/Annotations/{name}.xml",
            f"<HRSC_Image><HRSC_Objects><HRSC_Object>{box}</HRSC_Object></HRSC_Objects></HRSC_Image>",
        )
    write(root / "HRSC2016/ImageSets/val.txt", "")


def write_xview(root: Path) -> None:
    draw(root / "xView/train_images/5.tif", 50)
    bounds = ",".join(map(str, BOX))
    features = [
        {"properties": {"image_id": "5.tif", "type_id": kind, "bounds_imcoords": bounds}} for kind in (18, 77)
    ]
    write(root / "xView/xView_train.geojson", json.dumps({"type": "FeatureCollection", "features": features}))


def write_vhr10(root: Path) -> None:
    draw(root / "NWPU VHR-10 dataset/positive image set/001.jpg", 60)
    write(root / "NWPU VHR-10 dataset/ground truth/001.txt", "( 8, 10),(30,24), 10 \n")


def write_rsod(root: Path) -> None:
    names = zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
    box = "".join(f"<{tag}>{n}</{tag}>" for tag, n in names)
    for i, name in enumerate(("aircraft", "oiltank", "overpass", "playground")):
        draw(root / f"RSOD/{name}/JPEGImages/{name}_1.jpg", 70 + i)
        write(
            root / f"RSOD/{name}/Annotation/xml/{name}_1.xml",
            f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>",
        )


def write_ucas_aod(root: Path) -> None:
    line = "\t".join(f"{n:e}" for n in (*QUAD, 90, 8, 10, 22, 14)) + "\t\n"
    for i, folder in enumerate(("CAR", "PLANE")):
        draw(root / f"UCAS-AOD/{folder}/P0001.png", 80 + i)
        write(root / f"UCAS-AOD/{folder}/P0001.txt", line)


def write_vedai(root: Path) -> None:
    draw(root / "VEDAI/Vehicules1024/00000012_co.png", 90)
    xs, ys = " ".join(map(str, QUAD[::2])), " ".join(map(str, QUAD[1::2]))
    write(root / "VEDAI/Annotations1024/annotation1024.txt", f"00000012 19 17 0.0 {xs} {ys} 11 1 0\n")


def write_soda(root: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        draw(root / f"SODA-A/Images/0000{i}.jpg", 100 + i)
        entries = [{"poly": list(QUAD), "category_id": kind} for kind in (8, 9)]
        write(root / f"SODA-A/Annotations/{split}/0000{i}.json", json.dumps({"annotations": entries}))


def write_captions(root: Path) -> None:
    draw(root / "NWPU-Captions/NWPU_images/airport_1.jpg", 110)
    entry = {"filename": "airport_1.jpg", "split": "train", "raw": "an airport .", "raw_1": "many planes"}
    write(root / "NWPU-Captions/dataset_nwpu.json", json.dumps({"airport": [entry]}))
    draw(root / "Sydney_captions/imgs/1.tif", 111)
    sentences = [{"raw": "a river beside houses"}]
    images = [{"filename": "1.tif", "split": "train", "sentences": sentences}]
    write(root / "Sydney_captions/dataset.json", json.dumps({"images": images}))


# The writer of each source, and the concepts of its regions in the vocabulary.
SOURCES = {
    "DIOR": (write_dior, ["storage tank"] * 2),
    "DOTA-v2.0": (write_dota, ["airplane", "soccer field"] * 2),
    "FAIR1M": (write_fair1m, ["boeing 737"] * 2),
    "HRSC2016": (write_hrsc2016, ["ship"]),
    "xView": (write_xview, ["small car"]),
    "NWPU VHR-10": (write_vhr10, ["vehicle"]),
    "RSOD": (write_rsod, ["airplane", "storage tank", "overpass", "ground track field"]),
    "UCAS-AOD": (write_ucas_aod, ["car", "airplane"]),
    "VEDAI": (write_vedai, ["pickup truck"]),
    "SODA-A": (write_soda, ["windmill"] * 2),
    "NWPU-Captions": (write_captions, []),
}


def read(root: Path, *names: str) -> list[dict]:
    selection = select_sources("rsfg.yaml", str(root), list(names))
    return list(read_sources(selection.present, SkipReport(), {}))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_read_in_the_layout_of_its_authors(name, tmp_path):
    writer, concepts = SOURCES[name]
    writer(tmp_path)
    rows = read(tmp_path, name)
    assert [concept for row in rows for concept in row["concepts"]] == concepts
    assert {row["dataset"] for row in rows} == {name} and all(row["license"] for row in rows)
    assert all(row["source"].startswith(f"{name}/") for row in rows)
    for row in rows:
        for box in row["boxes"]:
            assert box == pytest.approx(BOX)
        assert len(row["phrases"]) == len(row["boxes"])


def test_every_source_of_the_recipe_has_a_stand_in():
    names = {source.name for source in load_recipe("rsfg.yaml")[0]}
    assert names - SOURCES.keys() == {"DOTA-v1.0", "DOTA-v1.5", "Sydney-Captions"}  # the same formats


def test_evaluation_sets_are_no_sources_and_benchmarks_are_read_only_if_named(tmp_path):
    sources, evaluations = load_recipe("rsfg.yaml")
    assert {"RSICD", "RSITMD", "UCM-Captions"} == {one.name for one in evaluations}
    write_vhr10(tmp_path)
    write_rsod(tmp_path)
    present = select_sources("rsfg.yaml", str(tmp_path)).present
    assert [source.name for source, _ in present] == ["RSOD"]


def test_the_newest_version_of_a_set_replaces_those_that_it_contains(tmp_path):
    for version in ("1.0", "1.5", "2.0"):
        write_dota(tmp_path, version)
    present = select_sources("rsfg.yaml", str(tmp_path)).present
    assert [source.name for source, _ in present] == ["DOTA-v2.0"]


def test_test_splits_that_share_a_folder_with_other_images_are_kept_out_by_their_lists(tmp_path):
    write_hrsc2016(tmp_path)
    write_soda(tmp_path)
    lists = select_sources("rsfg.yaml", str(tmp_path)).eval_lists
    found = {name.removeprefix(str(tmp_path)): [path.name for path in paths] for name, paths in lists.items()}
    assert found == {
        "/HRSC2016/ImageSets/test.txt": ["100000002.bmp"], "/SODA-A/Annotations/test": ["00002.jpg"]
    }  # fmt: skip
    (kept_out,) = [one for one in collect_sets(eval_lists=lists) if "HRSC" in one.name]
    assert list(kept_out.images.values()) == [str(tmp_path / "HRSC2016/FullDataSet/AllImages/100000002.bmp")]


def test_missing_sources_are_listed_with_where_to_get_them(tmp_path):
    write_rsod(tmp_path)
    missing = {entry["name"]: entry for entry in select_sources("rsfg.yaml", str(tmp_path)).missing}
    assert missing["xView"]["home"] == "http://xviewdataset.org"
    assert str(tmp_path / "xView") in missing["xView"]["folder"]
    assert "RSOD" not in missing
    with pytest.raises(
        ValueError, match="holds no source.*not found at [^,]*RSOD/xView, http://xviewdataset"
    ):
        select_sources("rsfg.yaml", str(tmp_path / "RSOD"))


def test_what_a_newer_set_contains_is_not_missing(tmp_path):
    write_dota(tmp_path)
    missing = {entry["name"] for entry in select_sources("rsfg.yaml", str(tmp_path)).missing}
    assert "xView" in missing and not missing & {"DOTA-v1.0", "DOTA-v1.5"}


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--root is '.*nowhere', which is not a folder"):
        select_sources("rsfg.yaml", str(tmp_path / "nowhere"))


def test_a_source_that_may_not_be_used_is_not_reported_as_not_found(tmp_path, capsys):
    write_rsod(tmp_path)
    write_xview(tmp_path)
    options = {"root": str(tmp_path), "license_filter": "redistribution", "sheet_rows": 0}
    run_build(BuildConfig(str(tmp_path / "out"), recipe="rsfg.yaml", **options))
    lines = capsys.readouterr().out.splitlines()
    assert any(
        re.fullmatch("RSOD: not built, its terms .* do not allow redistribution; see .*", line)
        for line in lines
    )
    assert any(re.fullmatch("FAIR1M: not built, not found at .*FAIR1M.*; see .*", line) for line in lines)


def test_only_sources_that_may_be_used_for_a_purpose_are_built(tmp_path):
    write_rsod(tmp_path)
    write_xview(tmp_path)
    selection = select_sources("rsfg.yaml", str(tmp_path), license_filter="redistribution")
    assert [source.name for source, _ in selection.present] == ["xView"]
    (rsod,) = [entry for entry in selection.missing if entry["name"] == "RSOD"]
    assert "do not allow redistribution" in rsod["reason"]
    with pytest.raises(ValueError, match="license_filter is 'fun'"):
        select_sources("rsfg.yaml", str(tmp_path), license_filter="fun")


def test_a_name_that_is_not_in_the_vocabulary_is_refused(tmp_path):
    write_ucas_aod(tmp_path)
    content = yaml.safe_load((RECIPES / "rsfg.yaml").read_text())
    (source,) = [entry for entry in content["sources"] if entry["name"] == "UCAS-AOD"]
    source["parts"][0]["options"]["concept"] = "spaceship"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    selection = select_sources(str(tmp_path / "mine.yaml"), str(tmp_path))
    with pytest.raises(ValueError, match="UCAS-AOD: P0001.png has the names .'spaceship'"):
        list(read_sources(selection.present, SkipReport(), {}))
    source["names"] = {"spaceship": "ufo"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    with pytest.raises(ValueError, match="ufo.*vocabulary.yaml"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_broader_concept_is_never_a_wrong_name_for_a_narrower_one():
    for concept, above in load_vocabulary().items():
        for broader in above:
            assert is_broader(broader, concept) and not is_broader(concept, broader)
            assert may_be_same(broader, concept) and may_be_same(concept, broader)


def test_one_dataset_is_built_with_terms_per_row_and_a_card_by_source(tmp_path, capsys):
    root = tmp_path / "root"
    for name in ("DIOR", "RSOD", "xView"):
        SOURCES[name][0](root)
    # A copy of an image of DIOR's test split, and one of an evaluation set, must not be trained on.
    test_image = root / "DIOR/JPEGImages-test/11726.jpg"
    (root / "RSOD/aircraft/JPEGImages/aircraft_1.jpg").write_bytes(test_image.read_bytes())
    draw(root / "RSICD/RSICD_images/a.jpg", 71)  # the picture of oiltank_1
    config = BuildConfig(
        output_dir=str(tmp_path / "rows"), recipe="rsfg.yaml", root=str(root), negatives="free"
    )
    statistics = build(config)
    assert statistics["skipped"]["in an evaluation set"] == 2
    rows = load_dataset(config.output_dir, split="train")
    assert rows["dataset"][:] == ["DIOR", "DIOR", "xView", "RSOD", "RSOD"]
    assert rows["license"][2] == "CC-BY-NC-SA-4.0"
    found = {source["name"]: source for source in statistics["sources"]}
    assert (
        found["DIOR"]["images"] == 2
        and "2 images, but the authors state 11725" in found["DIOR"]["differences"]
    )
    assert found["RSOD"]["num_rows"] == 2 and found["RSOD"]["images"] == 4
    assert "FAIR1M" in {source["name"] for source in statistics["missing_sources"]}
    card = (tmp_path / "rows" / "README.md").read_text()
    assert "| [xView](http://xviewdataset.org) | 1 | 1 |" in card and "license_name: mixed" in card
    head = card.index("| source | rows |")
    assert card[head - 2 : head] == "\n\n" and "|\n\nThe generated text" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, "--recipe is given without --root"),
        ({"tile": 512}, "--tile"),
        ({"coco": "x"}, "'coco', 'recipe'"),
        ({"recipe": None, "coco": "x.json"}, "--root has no effect on --coco"),
        ({"recipe": "none.yaml"}, "rsfg.yaml"),
    ],
)
def test_settings_that_do_not_fit_a_recipe_are_refused(tmp_path, changes, message):
    settings = {"output_dir": str(tmp_path / "rows"), "recipe": "rsfg.yaml", "root": str(tmp_path)}
    with pytest.raises(ValueError, match=message):
        build(BuildConfig(**settings | changes))
