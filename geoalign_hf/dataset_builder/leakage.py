"""Does a training set hold what it is evaluated on? Captions are compared as strings, images by two hashes.

What enters are rows and evaluation sets; what leaves is a list of overlaps, and a table of their numbers.

    python -m geoalign_hf.leakage --rows outputs/rows --eval_coco test.json --eval_captions dataset_rsicd.json
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import HfArgumentParser

from ..data.loading import load_rows
from ..readers.captions import list_captions
from ..readers.coco import read_coco
from ..readers.files import list_images

SIDE, KEPT = (
    32,
    8,
)  # an image is shrunk to SIDE x SIDE; of its cosine transform the KEPT x KEPT slowest waves count
FEWEST_EQUAL = (
    55  # of 63 signs, for images to look alike: copies have 57 or more, others 51 or less (NWPU VHR-10)
)
FLATTEST = 2.0  # standard deviation of brightness, of 255; a flatter image has no look of its own
_waves = np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # (KEPT, SIDE)


@dataclass(frozen=True)
class EvaluationSet:
    """What is known of a set that must not be trained on.

    Args:
        name: to call it by.
        images: names by the hash of their pixels.
        looks: (8 * number, 63), signs of each image in the eight ways it may be turned and mirrored.
        look_names: the image of each of them.
        captions: where a caption stands, by its normalised words.
    """

    name: str
    images: dict[str, str]
    looks: np.ndarray
    look_names: list[str]
    captions: dict[str, str]

    def find_image(self, image: Image.Image) -> tuple[str, str] | None:
        """Find an image: ("same image" or "similar image", its name here), or None."""
        if name := self.images.get(hash_pixels(image)):
            return "same image", name
        look = hash_look(image)
        if look is None or not len(self.looks):
            return None
        equal = (self.looks == look).sum(axis=1)
        best = int(equal.argmax())
        return ("similar image", self.look_names[best]) if equal[best] >= FEWEST_EQUAL else None

    def find_caption(self, caption: str) -> tuple[str, str] | None:
        """Find a caption: ("same caption", where it stands here), or None."""
        name = self.captions.get(normalize_caption(caption))
        return ("same caption", name) if name else None


def collect_set(
    name: str, images: Iterable[tuple[str, Image.Image]] = (), captions: Iterable[tuple[str, str]] = ()
) -> EvaluationSet:
    """Make the hashes of an evaluation set.

    Args:
        name: of the set.
        images: each with its name.
        captions: each with the place it stands at, as (place, caption).

    Returns:
        The set.
    """
    exact, looks, look_names = {}, [], []
    for place, image in images:
        exact[hash_pixels(image)] = place
        for turned in list_turns(image):
            look = hash_look(turned)
            if look is not None:
                looks.append(look)
                look_names.append(place)
    words = {normalize_caption(caption): place for place, caption in captions}
    return EvaluationSet(name, exact, np.array(looks, dtype=bool).reshape(-1, KEPT**2 - 1), look_names, words)


def normalize_caption(caption: str) -> str:
    """Leave of a caption its words: lower case, no punctuation, single spaces.

    Example:
        >>> normalize_caption("A  ship, at a pier .")
        'a ship at a pier'
    """
    return " ".join(re.findall(r"\w+", caption.lower()))


def hash_pixels(image: Image.Image) -> str:
    """Hash the pixels of an image, whatever file they came from."""
    image = image.convert("RGB")
    return sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def hash_look(image: Image.Image) -> np.ndarray | None:
    """Hash how an image looks: the signs of its slowest waves, which resizing and compression leave.

    Returns:
        (63,), bool; None for an image so flat that it looks like any other.

    Source:
        pHash: https://www.phash.org, the discrete cosine transform, here of 32 x 32 pixels.
    """
    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    if small.std() < FLATTEST:
        return None
    heights = (_waves @ small @ _waves.T).flatten()[1:]  # without the mean
    return heights > np.median(heights)


def list_turns(image: Image.Image) -> list[Image.Image]:
    """Give an image as it may lie: turned by quarters, and mirrored."""
    return [image, *(image.transpose(way) for way in Image.Transpose)]


def collect_sets(
    eval_coco: Iterable[str | Path] = (),
    eval_captions: Iterable[str | Path] = (),
    eval_images: Iterable[str | Path] = (),
) -> list[EvaluationSet]:
    """Make the hashes of evaluation sets from their files.

    Args:
        eval_coco: COCO files; their images lie in the same folder, or are named relative to it.
        eval_captions: caption files as `readers.list_captions` takes them; images are not needed.
        eval_images: folders of images.

    Returns:
        One set for each.
    """
    sets = []
    for path in eval_coco:
        sets.append(
            collect_set(str(path), ((row["source"], Image.open(row["image"])) for row in read_coco(path)))
        )
    for path in eval_captions:
        entries = list_captions(path)
        captions = [(entry["filename"], caption) for entry in entries for caption in entry["captions"]]
        sets.append(collect_set(str(path), captions=captions))
    for path in eval_images:
        sets.append(collect_set(str(path), ((str(image), Image.open(image)) for image in list_images(path))))
    return sets


def find_overlaps(row: dict, sets: Iterable[EvaluationSet]) -> list[dict]:
    """Find what of a row is in an evaluation set.

    Args:
        row: with a PIL image.
        sets: the evaluation sets.

    Returns:
        Entries with `set`, `kind` ("same image", "similar image" or "same caption"), `found` there, and the
        `caption` if it is one.
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
    """Write a Markdown table: one line for each evaluation set, with the numbers of overlaps."""
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
class LeakageArguments:
    """Which rows to compare with which evaluation sets."""

    rows: str = field(metadata={"help": "a folder of geoalign_hf.build, or a repository"})
    split: str = field(default="train", metadata={"help": "of the rows"})
    eval_coco: list[str] = field(default_factory=list, metadata={"help": "COCO files to evaluate on"})
    eval_captions: list[str] = field(default_factory=list, metadata={"help": "caption files to evaluate on"})
    eval_images: list[str] = field(
        default_factory=list, metadata={"help": "folders of images to evaluate on"}
    )
    output: Path | None = field(default=None, metadata={"help": "JSON file for the list of overlaps"})


def main() -> None:
    """Compare, print the table, write the list."""
    (arguments,) = HfArgumentParser(LeakageArguments).parse_args_into_dataclasses()
    sets = collect_sets(arguments.eval_coco, arguments.eval_captions, arguments.eval_images)
    overlaps = []
    for row in load_rows(arguments.rows, arguments.split, streaming=True):
        place = {"source": row["source"], "window": row["window"]}
        overlaps += [place | overlap for overlap in find_overlaps(row, sets)]
    print(write_table(overlaps, sets))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(overlaps, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
