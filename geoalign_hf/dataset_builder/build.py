"""Builds a dataset of rows from annotated images.

    geoalign-hf build --coco train.json --output_dir outputs/rows --num_workers 4

The input is annotation files of one format, or a recipe for several data sets. The output is a folder that
can be loaded and pushed as it is. It holds Parquet shards, a card, statistics, contact sheets and a report.
The same settings give the same shards for any number of processes. A build that was interrupted continues
when the same command is run again.
"""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from logging import getLogger
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from ..captioning.balance import score_text_only
from ..data.schema import count_rows
from ..data.tiling import list_tiles
from ..hub.dataset_cards import write_dataset_card
from ..images import DEFAULT_OPTIONS, ImageOptions
from ..options import option
from ..readers.registry import FORMATS
from ..readers.skipped import SkipReport
from ..readers.yolo import read_names
from ..storage import atomic_file, lock_folder, read_json, write_json
from .contact_sheet import draw_pages
from .leakage import EvaluationSet, collect_sets, write_table
from .plan import Plan, plan_shards
from .recipe import describe_missing, describe_sources, read_sources, select_sources
from .shards import Job, build_shards, iterate_rows, read_rows_at

logger = getLogger(__name__)
WORK = ".build"  # subfolder of an unfinished build; it is removed at the end
JOB_SETTINGS = ("split", "min_visible", "max_negatives", "leaks")
JOB_SETTINGS += ("on_error", "seed")
NEGATIVES = ("free", "matched", "balanced")
MOST_BASELINE_ROWS = 5000  # the text-only baseline is measured on so many rows
# Settings that no shard depends on.
FREE_SETTINGS = ("output_dir", "num_workers", "sheet_rows", "on_error")


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build. Give exactly one annotation format, or a recipe."""

    output_dir: str = option(
        default="",
        help="Folder of the dataset. By default, outputs/rows for the split train, and outputs/rows_<split> "
        "for others.",
    )
    coco: str | None = option(default=None, help=f"{FORMATS['coco'].description}.")
    dota: str | None = option(default=None, help=f"{FORMATS['dota'].description}.")
    voc: str | None = option(default=None, help=f"{FORMATS['voc'].description}.")
    yolo: str | None = option(default=None, help=f"{FORMATS['yolo'].description}.")
    captions: str | None = option(default=None, help=f"{FORMATS['captions'].description}.")
    recipe: str | None = option(
        default=None, help="Recipe for several data sets: a YAML file, or rsfg.yaml of this package."
    )
    root: str | None = option(default=None, help="Folder that holds the data sets of the recipe.")
    sources: list[str] = option(
        default_factory=list,
        help="Names of the recipe's data sets to build. By default, all except evaluation sets.",
    )
    license_filter: str | None = option(
        default=None,
        help="Purpose that the terms of a data set must allow: research, commercial or redistribution.",
    )
    images: str | None = option(
        default=None, help="Folder of the images. By default, for --coco, the folder of its file."
    )
    concepts: str | None = option(
        default=None, help="File of concept names: a data.yaml, or one name per line. Required for --yolo."
    )
    drop_difficult: bool = option(
        default=False, help="Exclusion of regions that are flagged as difficult (DOTA, VOC)."
    )
    counts_from_one: bool = option(
        default=False, help="Pixel numbering from 1 in VOC boxes, as in the original Pascal VOC."
    )
    caption_split: str | None = option(
        default=None, help="Split of the caption file to read. By default, all splits."
    )
    split: str = option(default="train", help="Name of the split that is built.")
    tile: int = option(
        default=0, help="Side of the tiles that larger images are cut into, in pixels. 0 cuts no tiles."
    )
    overlap: int = option(default=128, help="Overlap of neighbouring tiles, in pixels.")
    min_visible: float = option(
        default=0.5, help="Smallest part of a region's area, 0 to 1, with which a tile keeps the region."
    )
    max_negatives: int = option(default=4, help="Maximum number of hard negatives per phrase.")
    negatives: Literal["free", "matched", "balanced"] | None = option(
        default=None,
        help="Choice of hard negatives. free draws each by itself. matched draws each change of words as "
        "often as its opposite. balanced exchanges whole phrases equally often, so that the text alone "
        "does not reveal which is right. By default, matched for the split train and balanced for others.",
    )
    false_colour: bool = option(
        default=False, help="Images of false colours, such as infrared. No text names a colour then."
    )
    natural_colour: bool = option(
        default=False,
        help="Images of natural colours, although their bands are chosen or scaled. Without this option, no "
        "text names a colour of such images.",
    )
    model: str | None = option(
        default=None, help="Vision-language model that writes the text. By default, rules write it."
    )
    eval_coco: list[str] = option(
        default_factory=list, help="COCO files of evaluation sets, for the leakage check."
    )
    eval_captions: list[str] = option(
        default_factory=list, help="Caption files of evaluation sets, for the leakage check."
    )
    eval_images: list[str] = option(
        default_factory=list, help="Image folders of evaluation sets, for the leakage check."
    )
    leaks: Literal["skip", "keep"] = option(
        default="skip", help="Treatment of images and captions that are in an evaluation set."
    )
    on_error: Literal["stop", "skip"] = option(
        default="stop", help="Reaction to a wrong annotation or an unreadable image."
    )
    images_per_shard: int = option(default=100, help="Maximum number of source images per Parquet file.")
    shard_megabytes: int = option(default=500, help="Maximum size of a Parquet file, in megabytes.")
    num_workers: int = option(default=1, help="Number of processes.")
    seed: int = option(default=0, help="Seed of all random choices.")
    sheet_rows: int = option(default=12, help="Number of rows on the contact sheets.")
    title: str | None = option(default=None, help="Title of the card. By default, the name of the folder.")
    license: str | None = option(
        default=None,
        help="Licence of images and annotations as the Hub names it, such as cc-by-4.0 or other.",
    )
    license_name: str | None = option(default=None, help="Name of the licence if --license is other.")
    license_link: str | None = option(default=None, help="Address of the licence text.")

    def __post_init__(self):
        if not self.output_dir:
            folder = "outputs/rows" if self.split == "train" else f"outputs/rows_{self.split}"
            object.__setattr__(self, "output_dir", folder)


def build(config: BuildConfig, image_options: ImageOptions = DEFAULT_OPTIONS) -> dict:
    """Build a dataset.

    Args:
        config: The settings.
        image_options: Rules for images that are not 8-bit RGB. The rows hold what they give.

    Returns:
        The statistics, as in `statistics.json`.

    Raises:
        ValueError: If the settings do not fit each other, a source is wrong and `config.on_error` is "stop",
            the folder holds something else, or no row remains.
        RuntimeError: If another process is building in the same folder.
    """
    _check_config(config)
    output = Path(config.output_dir)
    if output.exists() and not (output / "build.json").exists() and _list_visible(output):
        raise ValueError(f"{output} is not empty and holds no build. Give another --output_dir.")
    with lock_folder(output):
        return _build_locked(config, image_options, output)


def _build_locked(config: BuildConfig, image_options: ImageOptions, output: Path) -> dict:
    # 1. The plan: which images go into which shard.
    work = output / WORK
    report = SkipReport(config.on_error)
    selection = None
    if config.recipe and config.root:
        selection = select_sources(config.recipe, config.root, config.sources, config.license_filter)
    sets = collect_sets(
        config.eval_coco,
        config.eval_captions + (selection.eval_captions if selection else []),
        config.eval_images + (selection.eval_images if selection else []),
        image_options,
        selection.eval_lists if selection else None,
    )
    counts: dict[str, dict[str, int]] = {}
    rows = read_sources(selection.present, report, counts) if selection else _read_source(config, report)
    shutil.rmtree(work / "plan", ignore_errors=True)
    most_bytes = config.shard_megabytes * 1_000_000
    has_bands = image_options.bands is not None
    plan = plan_shards(rows, work / "plan", config.images_per_shard, most_bytes, has_bands)
    _check_same_build(config, image_options, plan)
    if (output / "report.jsonl").exists():
        logger.warning(f"{output} is complete. Nothing is left to do.")
        shutil.rmtree(work)
        return read_json(output / "statistics.json")

    # 2. The shards that do not exist yet.
    settings = {name: getattr(config, name) for name in JOB_SETTINGS}
    settings |= {"negatives": choose_negatives(config), "image_options": image_options}
    if config.false_colour or config.natural_colour:
        settings["natural_colour"] = config.natural_colour
    job = Job(output, work, plan.num_shards, plan.vocabulary, sets, **settings)
    (output / "data").mkdir(exist_ok=True)
    missing = [index for index in range(job.num_shards) if not job.locate_shard(index).exists()]
    ask = None
    if config.model and missing:
        import transformers  # takes seconds, and rules do not need it

        ask = transformers.pipeline("image-text-to-text", model=config.model)
    with tqdm(total=job.num_shards, initial=job.num_shards - len(missing), desc="shards") as bar:
        for _ in build_shards(job, missing, config.num_workers, ask):
            bar.update()

    # 3. The summary. The report is written last: it marks the build as complete.
    with atomic_file(work / "report.jsonl") as file:
        skipped, first = _collect_report(job, report, file)
    statistics = count_rows(iterate_rows(job)) | {"skipped": skipped} | _describe_negatives(job)
    if not statistics["num_rows"]:
        first = f" (the first: {first})" if first else ""
        raise ValueError(
            f"{output}: no row remains of {plan.num_rows} images; skipped: {skipped}{first}. Correct the "
            "sources or the settings, then delete the folder or give another --output_dir."
        )
    if selection:
        statistics["sources"] = describe_sources(selection, counts, iterate_rows(job))
        statistics["missing_sources"] = selection.missing
    write_json(output / "statistics.json", statistics)
    draw_pages(list(read_rows_at(job, config.sheet_rows)), output)
    settings = asdict(config) | {"image_rule": image_options.describe()}
    write_dataset_card(output, statistics, settings, _write_leakage(job, sets))
    (work / "report.jsonl").replace(output / "report.jsonl")
    shutil.rmtree(work)
    return statistics


def _check_config(config: BuildConfig) -> None:
    given = [name for name in (*FORMATS, "recipe") if getattr(config, name)]
    if len(given) != 1:
        options = [f"--{name}" for name in (*FORMATS, "recipe")]
        raise ValueError(f"the sources are {given}. Give exactly one of {options}.")
    if given == ["recipe"]:
        _check_recipe(config)
    else:
        _check_format(config, given[0])
    if config.false_colour and config.natural_colour:
        raise ValueError("--false_colour and --natural_colour contradict each other. Give one of them.")
    if config.negatives not in (None, *NEGATIVES):
        raise ValueError(f"--negatives is {config.negatives!r}. Choose one of {NEGATIVES}.")
    if config.leaks not in ("skip", "keep"):
        raise ValueError(f"--leaks is {config.leaks!r}. Choose skip or keep.")
    if config.model and config.num_workers > 1:
        raise ValueError(
            f"--model is given with {config.num_workers} workers, each of which would load it. Use 1."
        )
    for name in ("images_per_shard", "shard_megabytes", "num_workers"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}. Give 1 or more.")
    for name in ("max_negatives", "sheet_rows", "seed"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name} is {getattr(config, name)}. Give 0 or more.")
    if not re.fullmatch(r"\w+(\.\w+)*", config.split):  # as datasets requires
        raise ValueError(f"--split is {config.split!r}. Give letters, digits and underscores.")


def _check_recipe(config: BuildConfig) -> None:
    if not config.root:
        raise ValueError("--recipe is given without --root. Give the folder that holds the data sets.")
    options = {name for one in FORMATS.values() for name in one.options} | {"images", "tile"}
    if without_effect := sorted(f"--{name}" for name in options if getattr(config, name)):
        raise ValueError(f"{without_effect} have no effect on --recipe, which states them. Edit the recipe.")


def _check_format(config: BuildConfig, given: str) -> None:
    for name in ("root", "sources", "license_filter"):
        if getattr(config, name):
            raise ValueError(f"--{name} has no effect on --{given}; it goes with --recipe. Omit it.")
    for name in FORMATS[given].required:
        if not getattr(config, name):
            raise ValueError(f"--{given} is given without --{name}. Give both.")
    for name in sorted({name for one in FORMATS.values() for name in one.options}):
        if getattr(config, name) and name not in FORMATS[given].options:
            formats = [key for key, one in FORMATS.items() if name in one.options]
            raise ValueError(f"--{name} has no effect on --{given}; it goes with {formats}. Omit it.")
    if config.tile:
        list_tiles((1, 1), config.tile, config.overlap)  # refuses an overlap as wide as a tile


def _read_source(config: BuildConfig, report: SkipReport) -> Iterator[dict]:
    """Read the annotations that a config names."""
    name, source = next((name, FORMATS[name]) for name in FORMATS if getattr(config, name))
    options = {name: getattr(config, name) for name in source.options}
    if options.get("concepts"):
        options["concepts"] = read_names(Path(options["concepts"]))
    tile = (config.tile, config.overlap) if config.tile else None
    for row in source.read(getattr(config, name), config.images, report=report, **options):
        yield row | {"tile": tile, "license": config.license_name or config.license}


def _list_visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _check_same_build(config: BuildConfig, image_options: ImageOptions, plan: Plan) -> None:
    """Record the settings of a new build, or refuse a folder that was built with other settings."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS}
    settings["image_rule"] = image_options.describe()
    settings["annotations"] = plan.digest
    path = Path(config.output_dir) / "build.json"
    if not path.exists() or not any(path.parent.glob("data/*.parquet")):  # nothing was built with others
        write_json(path, settings)
        return
    before = read_json(path)
    if changed := sorted(name for name in settings if settings[name] != before.get(name)):
        raise ValueError(
            f"{config.output_dir} holds a build with other settings: {changed} differ. "
            "Give another --output_dir, or delete the folder."
        )


def choose_negatives(config: BuildConfig) -> str:
    """Return how hard negatives are chosen. Free text of a model has no phrases that come again elsewhere."""
    is_training = config.split == "train" or config.model is not None
    return config.negatives or ("matched" if is_training else "balanced")


def _describe_negatives(job: Job) -> dict:
    """Return how hard negatives were balanced, and how well text alone can tell them.

    Returns:
        `negatives` (the choice), `negative_balance` (by kind, the numbers of candidates and of those kept),
        and `text_only_baseline`, which is None without scikit-learn.
    """
    balance: dict[str, Counter] = {}
    for note in _read_notes(job):
        for kind, counts in note["balance"].items():
            balance.setdefault(kind, Counter()).update(counts)
    for kind in sorted(kind for kind, counts in balance.items() if not counts["kept"]):
        logger.warning(f"no hard negatives of the kind {kind!r} are kept: this data cannot balance them.")
    described: dict = {"negatives": job.negatives}
    described["negative_balance"] = {kind: dict(balance[kind]) for kind in sorted(balance)}
    rows = list(islice(iterate_rows(job), MOST_BASELINE_ROWS))
    return described | {"text_only_baseline": score_text_only(rows, seed=job.seed)}


def _read_notes(job: Job) -> Iterator[dict]:
    return (read_json(job.locate_note(index)) for index in range(job.num_shards))


def _collect_report(job: Job, report: SkipReport, file) -> tuple[dict[str, int], str | None]:
    """Write everything that was skipped to one file, and count it by kind.

    Returns:
        The counts, most frequent first, and the first message.
    """
    counts, first = Counter(), None
    for entries in (report.entries, *(note["skipped"] for note in _read_notes(job))):
        for entry in entries:
            counts[entry["kind"]] += 1
            first = first or entry["message"]
            file.write(json.dumps(entry).encode() + b"\n")
    return dict(counts.most_common()), first


def _write_leakage(job: Job, sets: list[EvaluationSet]) -> str | None:
    """Write the list of overlaps with evaluation sets, and return a table of their numbers."""
    if not sets:
        return None
    overlaps = [entry for note in _read_notes(job) for entry in note["overlaps"]]
    with atomic_file(job.output / "leakage.jsonl") as file:
        file.writelines(json.dumps(entry).encode() + b"\n" for entry in overlaps)
    return write_table(overlaps, sets)


def run_build(config: BuildConfig, image_options: ImageOptions = DEFAULT_OPTIONS) -> None:
    """Build a dataset and print what was built."""
    start = time.perf_counter()
    statistics = build(config, image_options)
    print(
        f"{statistics['num_rows']} rows, {statistics['num_regions']} regions of "
        f"{len(statistics['concepts'])} concepts, {statistics['num_hard_negatives']} hard negatives; "
        f"skipped: {statistics['skipped'] or 'nothing'}; {time.perf_counter() - start:.0f} s"
    )
    for source in statistics.get("sources", []):
        numbers = f"{source['num_rows']} rows of {source['images']} images"
        print(f"{source['name']}: {numbers}; counts: {source['differences']}")
    for source in statistics.get("missing_sources", []):
        print(f"{source['name']}: not built, {describe_missing(source)}; see {source['home']}")
