"""Annotated images to a dataset of rows, with one command.

    python -m geoalign_hf.build --coco train.json --output outputs/rows --num_workers 4

What enters are the files of one format (`--coco`, `--dota`, `--voc`, `--yolo` or `--captions`); what leaves
is a folder that can be loaded and pushed as it is: Parquet shards, a card, statistics, a contact sheet, a
report. The same settings give the same shards, whatever the number of processes; a build that was killed
goes on where it was when the command is given again.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import transformers
from transformers.utils.logging import get_logger, tqdm

from ..data.loading import decode_image, load_rows
from ..data.schema import count_rows
from ..data.tiling import list_tiles
from ..hub.cards import write_dataset_card
from ..readers.registry import FORMATS
from ..readers.skipped import SkipReport
from ..readers.yolo import read_names
from ..storage import read_json, write_json, write_text
from .contact_sheet import draw_contact_sheet
from .leakage import collect_sets, write_table
from .shards import Job, build_shards

logger = get_logger(__name__)
SHARD_SETTINGS = ("split", "images_per_shard", "tile", "overlap", "min_visible", "max_negatives")
SHARD_SETTINGS += ("leaks", "on_error", "seed")


def _help(text: str, default=None):
    if isinstance(default, list):
        return field(default_factory=list, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BuildConfig:
    """What to build from what; give one of the five formats."""

    output: str = field(metadata={"help": "folder of the dataset"})
    coco: str | None = _help("COCO detection file, or a folder of them")
    dota: str | None = _help("folder of DOTA text files")
    voc: str | None = _help("folder of Pascal VOC xml files")
    yolo: str | None = _help("folder of YOLO text files")
    captions: str | None = _help("caption file in the form of RSICD")
    images: str | None = _help("folder of the images; default with --coco: that of the file")
    concepts: str | None = _help("file of concept names, one a line or data.yaml; needed with --yolo")
    drop_difficult: bool = _help("leave out what is flagged as difficult (DOTA, VOC)", False)
    counts_from_one: bool = _help("VOC boxes count pixels from 1, as Pascal VOC itself does", False)
    caption_split: str | None = _help("take this split of the caption file alone")
    split: str = _help("name of the split that is made", "train")
    tile: int = _help("cut larger images into tiles of so many pixels a side; 0: never", 0)
    overlap: int = _help("of neighbouring tiles, in pixels", 128)
    min_visible: float = _help("a region less visible in a tile is left out of it", 0.5)
    max_negatives: int = _help("hard negatives of one phrase, at most", 4)
    model: str | None = _help("vision-language model that words the rows; default: rules do")
    eval_coco: list[str] = _help("COCO files to evaluate on, for the leakage check", [])
    eval_captions: list[str] = _help("caption files to evaluate on", [])
    eval_images: list[str] = _help("folders of images to evaluate on", [])
    leaks: str = _help("what is also in an evaluation set: skip or keep", "skip")
    on_error: str = _help("at a wrong annotation or image: stop or skip", "stop")
    images_per_shard: int = _help(
        "images of the source that make one Parquet file; fewer where they are large", 100
    )
    num_workers: int = _help("processes", 1)
    seed: int = _help("of wording and choice", 0)
    sheet_rows: int = _help("rows on the contact sheet", 12)
    title: str | None = _help("of the card; default: the folder's name")
    license: str | None = _help("of images and annotations, as the Hub names it, such as cc-by-4.0 or other")
    license_name: str | None = _help("where license is other")
    license_link: str | None = _help("to its text")


def build(config: BuildConfig) -> dict:
    """Build a dataset.

    Args:
        config: what from what.

    Returns:
        The statistics, as in `statistics.json`.

    Raises:
        ValueError: if the settings do not fit each other, something in the sources is wrong and
            `config.on_error` is "stop", the folder holds a build with other settings, or no row is left.
    """
    _check_config(config)
    PIL.Image.MAX_IMAGE_PIXELS = None  # a scene that is cut into tiles is meant to be large
    output = Path(config.output)
    report = SkipReport(config.on_error)

    # 1. What there is to do, and whether the folder is of the same build.
    rows = _read_source(config, report)
    sets = collect_sets(config.eval_coco, config.eval_captions, config.eval_images)
    vocabulary = sorted({concept for row in rows for concept in row["concepts"] + row["unboxed"]})
    settings = asdict(config)
    job = Job(
        output=output,
        rows=rows,
        vocabulary=vocabulary,
        sets=sets,
        **{name: settings[name] for name in SHARD_SETTINGS},
    )
    _check_folder(config, rows)
    if (output / "report.jsonl").exists():
        logger.warning(f"{output} is complete; nothing is left to do.")
        shutil.rmtree(output / ".build")
        return read_json(output / "statistics.json")

    # 2. The shards that are not there yet.
    missing = [index for index in range(job.num_shards) if not job.locate_shard(index).exists()]
    ask = (
        transformers.pipeline("image-text-to-text", model=config.model) if config.model and missing else None
    )
    bar = tqdm(total=job.num_shards, initial=job.num_shards - len(missing), desc="shards")
    for _ in build_shards(job, missing, config.num_workers, ask):
        bar.update()
    bar.close()

    # 3. What is told of the whole; the report comes last and says that all is done.
    parts = [read_json(job.locate_note(i)) for i in range(job.num_shards)]
    report.entries += [entry for part in parts for entry in part["left_out"]]
    overlaps = [entry for part in parts for entry in part["overlaps"]]
    dataset = load_rows(output, config.split, streaming=True)
    statistics = count_rows(dataset.remove_columns("image")) | {"left_out": report.count_kinds()}
    if not statistics["num_rows"]:
        first = f" (the first: {report.entries[0]['message']})" if report.entries else ""
        raise ValueError(
            f"{output}: no row is left of {len(rows)} images; left out: {report.count_kinds()}{first}. "
            "Mend the sources or the settings, then delete the folder or give another --output."
        )
    write_json(output / "statistics.json", statistics)
    _draw_sheet(dataset, statistics["num_rows"], config)
    table = write_table(overlaps, sets) if sets else None
    if sets:
        write_json(output / "leakage.json", overlaps)
    write_dataset_card(output, statistics, asdict(config), table)
    write_text(output / "report.jsonl", "".join(json.dumps(entry) + "\n" for entry in report.entries))
    shutil.rmtree(output / ".build")
    return statistics


def _check_config(config: BuildConfig) -> None:
    given = [name for name in FORMATS if getattr(config, name)]
    if len(given) != 1:
        raise ValueError(f"the sources are {given}. Give exactly one of {['--' + name for name in FORMATS]}.")
    for name in FORMATS[given[0]].required:
        if not getattr(config, name):
            raise ValueError(f"--{given[0]} is given without --{name}. Give both.")
    for name in sorted({option for one in FORMATS.values() for option in one.options}):
        if getattr(config, name) and name not in FORMATS[given[0]].options:
            formats = [key for key, one in FORMATS.items() if name in one.options]
            raise ValueError(f"--{name} has no effect on --{given[0]}; it goes with {formats}. Omit it.")
    if config.tile:
        list_tiles((1, 1), config.tile, config.overlap)  # refuses an overlap as wide as a tile
    if config.leaks not in ("skip", "keep"):
        raise ValueError(f"--leaks is {config.leaks!r}. Choose skip or keep.")
    if config.model and config.num_workers > 1:
        raise ValueError(
            f"--model is given with {config.num_workers} workers, each of which would load it. Use 1."
        )
    for name in ("images_per_shard", "num_workers"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}. Give 1 or more.")


def _read_source(config: BuildConfig, report: SkipReport) -> list[dict]:
    """Read the annotations that a config names."""
    name, source = next((name, FORMATS[name]) for name in FORMATS if getattr(config, name))
    options = {option: getattr(config, option) for option in source.options}
    if options.get("concepts"):
        options["concepts"] = read_names(Path(options["concepts"]))
    return source.read(getattr(config, name), config.images, report=report, **options)


def _check_folder(config: BuildConfig, rows: list[dict]) -> None:
    """Make the folder, or refuse one of another build; take away what a killed process has left half done."""
    output = Path(config.output)
    settings = asdict(config)
    for name in ("output", "num_workers", "sheet_rows", "on_error"):  # of these no shard depends
        del settings[name]
    told = [{name: value for name, value in row.items() if name != "image"} for row in rows]
    settings["annotations"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    path = output / "build.json"
    if path.exists():
        before = read_json(path)
        if changed := sorted(name for name in settings if settings[name] != before.get(name)):
            raise ValueError(
                f"{output} holds a build with other settings: {changed} differ. "
                "Give another --output, or delete the folder."
            )
    elif output.exists() and any(entry.suffix != ".partial" for entry in output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no build. Give another --output.")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)  # first: now the folder is known for what it is
    for partial in output.rglob("*.partial"):
        partial.unlink()
    (output / "data").mkdir(exist_ok=True)
    (output / ".build").mkdir(exist_ok=True)


def _draw_sheet(dataset, num_rows: int, config: BuildConfig) -> None:
    """Draw some rows, chosen by the seed."""
    rng = np.random.default_rng(config.seed)
    chosen = set(rng.choice(num_rows, min(config.sheet_rows, num_rows), replace=False).tolist())
    rows = [row for i, row in enumerate(dataset.decode(False)) if i in chosen]
    if rows:
        rows = [row | {"image": decode_image(row["image"], SkipReport())} for row in rows]
        draw_contact_sheet(rows).save(Path(config.output) / "contact_sheet.png")


def main() -> None:
    """Build, and print what was built."""
    (config,) = transformers.HfArgumentParser(BuildConfig).parse_args_into_dataclasses()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("geoalign_hf").setLevel(logging.INFO)
    start = time.perf_counter()
    statistics = build(config)
    print(
        f"{config.output}: {statistics['num_rows']} rows, {statistics['num_regions']} regions of "
        f"{len(statistics['concepts'])} concepts, {statistics['num_hard_negatives']} hard negatives; "
        f"left out: {statistics['left_out'] or 'nothing'}; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
