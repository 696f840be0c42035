"""The annotation formats that the dataset builder can read.

A new format is one file beside this one with a read function, one entry in `FORMATS`, and one option of its
name in `BuildConfig` (`dataset_builder/build.py`). The format of one data set, which only a recipe names, is
one file and one entry in `READERS`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .captions import read_captions
from .coco import read_coco
from .dota import read_dota
from .soda import read_soda
from .ucas_aod import read_ucas_aod
from .vedai import read_vedai
from .vhr10 import read_vhr10
from .voc import read_voc
from .xview import read_xview
from .yolo import read_yolo


class AnnotationFormat(NamedTuple):
    """How the files of one annotation format are read.

    Args:
        description: Description of what the user gives, beginning with a noun, for help texts.
        read: A function `read(annotations, images, report=..., **options)` that yields rows.
        suffixes: Suffixes of its annotation files.
        options: Keywords that `read` takes beyond `annotations`, `images` and `report`.
        required: Those of its arguments that the user must give.
    """

    description: str
    read: Callable[..., Iterator[dict]]
    suffixes: tuple[str, ...]
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ("images",)


FORMATS = {
    "coco": AnnotationFormat(
        "COCO detection file, or a folder of them", read_coco, (".json", ".json.gz"), ("drop_difficult",), ()
    ),
    "dota": AnnotationFormat(
        "Folder of DOTA text files", read_dota, (".txt",), ("concepts", "drop_difficult")
    ),
    "voc": AnnotationFormat(
        "Folder of Pascal VOC, HRSC2016 or FAIR1M xml files",
        read_voc,
        (".xml",),
        ("concepts", "drop_difficult", "counts_from_one"),
    ),
    "yolo": AnnotationFormat(
        "Folder of YOLO text files", read_yolo, (".txt",), ("concepts",), ("images", "concepts")
    ),
    "captions": AnnotationFormat(
        "Caption file in the form of RSICD or NWPU-Captions",
        read_captions,
        (".json", ".jsonl", ".json.gz", ".jsonl.gz"),
        ("caption_split",),
    ),
}
# Read functions of all formats that a recipe may name: those above, and those of single data sets.
READERS: dict[str, Callable[..., Iterator[dict]]] = {name: one.read for name, one in FORMATS.items()} | {
    "soda": read_soda,
    "ucas_aod": read_ucas_aod,
    "vedai": read_vedai,
    "vhr10": read_vhr10,
    "xview": read_xview,
}
