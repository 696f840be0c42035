"""Finds images and captions of evaluation sets in training rows.

Captions are compared by their words. Images are compared by a hash of their pixels and by a perceptual hash.

    geoalign-hf check-leakage --dataset outputs/rows --eval_coco test.json --eval_captions dataset_rsicd.json
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.duplicates import FEWEST_EQUAL, KEPT, hash_appearance, hash_pixels, list_orientations
from ..data.loading import load_rows
from ..images import DEFAULT_OPTIONS, ImageOptions, read_image
from ..options import option
from ..readers.captions import list_captions
from ..readers.coco import read_coco
from ..readers.files import list_images
from ..storage import check_output_file, write_text


@dataclass(frozen=True)
class EvaluationSet:
    """Hashes of an evaluation set, which must not be trained on.

    Args:
        name: Name of the set.
        images: Image names by the hash of their pixels.
        signs: (8 * number, 63), perceptual hashes of each image in its eight orientations.
        sign_names: The image name of each row of `signs`.
        captions: Place of each caption, by its normalised words.
    """

    name: str
    images: dict[str, str]
    signs: np.ndarray
    sign_names: list[str]
    captions: dict[str, str]

    def find_image(self, image: Image.Image) -> tuple[str, str] | None:
        """Find an image.

        Returns:
            "same image" or "similar image", and the name of the image in this set; or None.
        """
        if name := self.images.get(hash_pixels(image)):
            return "same image", name
        signs = hash_appearance(image)
        if signs is None or not len(self.signs):
            return None
        equal = (self.signs == signs).sum(axis=1)
        best = int(equal.argmax())
        return ("similar image", self.sign_names[best]) if equal[best] >= FEWEST_EQUAL else None

    def find_caption(self, caption: str) -> tuple[str, str] | None:
        """Find a caption.

        Returns:
            "same caption" and its place in this set, or None.
        """
        place = self.captions.get(normalize_caption(caption))
        return ("same caption", place) if place else None


def collect_set(
    name: str, images: Iterable[tuple[str, Image.Image]] = (), captions: Iterable[tuple[str, str]] = ()
) -> EvaluationSet:
    """Hash an evaluation set.

    Args:
        name: Name of the set.
        images: Pairs of an image name and an image.
        captions: Pairs of a place and a caption.

    Returns:
        The set.
    """
    exact, all_signs, sign_names = {}, [], []
    for place, image in images:
        exact[hash_pixels(image)] = place
        for oriented in list_orientations(image):
            signs = hash_appearance(oriented)
            if signs is not None:
                all_signs.append(signs)
                sign_names.append(place)
    words = {normalize_caption(caption): place for place, caption in captions}
    signs = np.array(all_signs, dtype=bool).reshape(-1, KEPT**2 - 1)
    return EvaluationSet(name, exact, signs, sign_names, words)


def normalize_caption(caption: str) -> str:
    """Reduce a caption to its words: lower case, no punctuation, single spaces.

    Example:
        >>> normalize_caption("A  ship, at a pier .")
        'a ship at a pier'
    """
    return " ".join(re.findall(r"\w+", caption.lower()))


def collect_sets(
    eval_coco: Iterable[str | Path] = (),
    eval_captions: Iterable[str | Path] = (),
    eval_images: Iterable[str | Path] = (),
    image_options: ImageOptions = DEFAULT_OPTIONS,
    eval_lists: Mapping[str, Iterable[Path]] | None = None,
) -> list[EvaluationSet]:
    """Hash evaluation sets.

    Args:
        eval_coco: COCO files. Their images lie in the same folder, or in subfolders that the file names.
        eval_captions: Caption files in a form that `readers.captions` reads. No images are needed.
        eval_images: Folders of images.
        image_options: Rules for images that are not 8-bit RGB.
        eval_lists: Images of each further set, by its name.

    Returns:
        One set for each file, folder or list.
    """
    sets = []
    for path in eval_coco:
        images = ((row["source"], read_image(row["image"], image_options)) for row in read_coco(path))
        sets.append(collect_set(str(path), images))
    for path in eval_captions:
        entries = list_captions(path)
        captions = [(entry["filename"], caption) for entry in entries for caption in entry["captions"]]
        sets.append(collect_set(str(path), captions=captions))
    lists = {str(path): list_images(path) for path in eval_images} | dict(eval_lists or {})
    for name, paths in lists.items():
        sets.append(collect_set(name, ((str(path), read_image(path, image_options)) for path in paths)))
    return sets


def find_overlaps(row: dict, sets: Iterable[EvaluationSet]) -> list[dict]:
    """Find the image and the captions of a row in evaluation sets.

    Args:
        row: A row with a PIL image.
        sets: The evaluation sets.

    Returns:
        Entries with `set`, `kind` ("same image", "similar image" or "same caption"), `found` (the place in
        that set) and, for a caption, `caption`.
    """
    overlaps = []
    for evaluation in sets:
        if match := evaluation.find_image(row["image"]):
            overlaps.append({"set": evaluation.name, "kind": match[0], "found": match[1]})
        for caption in row.get("captions") or []:
            if match := evaluation.find_caption(caption):
                entry = {"set": evaluation.name, "kind": match[0], "found": match[1], "caption": caption}
                overlaps.append(entry)
    return overlaps


def write_table(overlaps: list[dict], sets: Iterable[EvaluationSet]) -> str:
    """Write a Markdown table with one line per evaluation set and the numbers of overlaps."""
    kinds = ("same image", "similar image", "same caption")
    lines = [
        f"| evaluation set | images | captions | {' | '.join(kinds)} |",
        f"|{' --- |' * (3 + len(kinds))}",
    ]
    for evaluation in sets:
        found = [entry["kind"] for entry in overlaps if entry["set"] == evaluation.name]
        numbers = [len(evaluation.images), len(evaluation.captions), *(found.count(kind) for kind in kinds)]
        lines.append(f"| {evaluation.name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class LeakageConfig:
    """Rows to compare with evaluation sets."""

    dataset: str = option(default="outputs/rows", help="Folder or Hub repository of built rows.")
    split: str | None = option(default=None, help="Split of the rows. By default, train or the only split.")
    eval_coco: list[str] = option(default_factory=list, help="COCO files of evaluation sets.")
    eval_captions: list[str] = option(default_factory=list, help="Caption files of evaluation sets.")
    eval_images: list[str] = option(default_factory=list, help="Image folders of evaluation sets.")
    output: str | None = option(default=None, help="JSON file for the list of overlaps.")


def run_leakage(config: LeakageConfig, image_options: ImageOptions) -> None:
    """Compare rows with evaluation sets, print a table and write the list of overlaps."""
    if config.output:
        check_output_file(config.output)
    sets = collect_sets(config.eval_coco, config.eval_captions, config.eval_images, image_options)
    overlaps = []
    for row in load_rows(config.dataset, config.split, streaming=True, image_options=image_options):
        place = {"source": row["source"], "window": row["window"]}
        overlaps += [place | overlap for overlap in find_overlaps(row, sets)]
    print(write_table(overlaps, sets))
    if config.output:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(config.output, json.dumps(overlaps, indent=2))
