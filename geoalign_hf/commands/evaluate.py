"""`geoalign-hf evaluate`: each task prints its scores and writes them to `metrics.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset, load_dataset

from ..data.loading import decode_images
from ..data.schema import build_rows
from ..data.views import REGION_SOURCES
from ..detection.detector import DetectionOptions
from ..embedding.score_maps import TILE_SIDES, build_score_maps
from ..embedding.templates import TEMPLATE_SETS
from ..evaluation.choice import StatementChoiceEvaluator
from ..evaluation.classification import RegionClassificationEvaluator, SceneClassificationEvaluator
from ..evaluation.drift import EmbeddingDriftEvaluator
from ..evaluation.figures import draw_confusion, draw_score_map
from ..evaluation.hard_negatives import HardNegativeEvaluator
from ..evaluation.localization import LocalizationEvaluator
from ..evaluation.metrics.localization import normalize_map
from ..evaluation.results import write_metrics
from ..evaluation.retrieval import CAPTION_PREFIXES, CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
from ..hub.cards import list_numbers, list_tables, name_dataset
from ..images import ImageOptions
from ..options import option
from ..readers.captions import list_captions, read_captions
from ..readers.files import list_images, parse_json, read_text
from ..storage import read_json
from .detect import DetectionTaskOptions
from .inputs import TEST_ROWS, ModelOptions, RowOptions, load_model

SAVE_HELP = "Storage of the embeddings behind the scores, in .npz files."


@dataclass
class RegionTaskOptions:
    """What is measured on ground-truth boxes."""

    region_sources: list[str] | None = option(
        default=None,
        help="Sources of the embedding of a box: the whole image, a window or crop around the box, or both. "
        "By default, the one that the model was trained for.",
        choices=REGION_SOURCES,
    )
    context: float | None = option(
        default=None, help="Side of windows and crops, in multiples of the longer side of the box."
    )
    templates: Literal["geoalign", "clip", "skyscript", "overhead"] = option(
        default="geoalign", help="Template set that concepts are put into."
    )
    start: str | None = option(
        default=None,
        help="Model that training started from. With it, the drift of the embeddings is measured.",
    )
    output_dir: str = option(
        default="outputs/evaluate_regions", help="Folder of metrics.json and a confusion matrix per source."
    )
    save_embeds: bool = option(default=False, help=SAVE_HELP)


def evaluate_regions(
    options: RegionTaskOptions,
    row_options: RowOptions,
    model_options: ModelOptions,
    image_options: ImageOptions,
) -> Path:
    """Score a model on ground-truth boxes: their concepts, their phrases and, where given, hard negatives."""
    row_options.check()
    embedder, output_dir = model_options.load(image_options), Path(options.output_dir)
    rows = row_options.load(embedder.image_options)
    sources = options.region_sources or [embedder.resolve_view()[0]]
    if options.context is not None and set(sources) == {"image"}:
        raise ValueError("--context needs windows, but the only region source is image. Omit --context.")
    evaluators = {}
    for source in sources:
        view = {"region_source": source, "context": options.context}
        evaluators[f"concepts, {source}"] = RegionClassificationEvaluator(
            rows, templates=options.templates, **view
        )
        evaluators[f"phrases, {source}"] = PhraseRetrievalEvaluator(rows, **view)
        if any(rows["hard_negatives"]):
            evaluators[f"hard negatives, {source}"] = HardNegativeEvaluator(rows, **view)
    if options.start:
        phrases = sorted({phrase for of_row in rows["phrases"] for phrase in of_row})
        start, _ = load_model(options.start)
        evaluators["drift"] = EmbeddingDriftEvaluator(rows["image"], phrases, start=start)
    metrics = {}
    for title, evaluator in evaluators.items():
        if options.save_embeds:
            evaluator.arrays_path = output_dir / f"{title.replace(', ', '_').replace(' ', '_')}.npz"
        metrics[title] = evaluator(embedder)
    for source in sources:
        scores = metrics[f"concepts, {source}"]
        path = output_dir / f"confusion_{source}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    return finish(metrics, output_dir, row_options.describe(rows))


@dataclass
class SceneTaskOptions:
    """The images and the names of their scenes."""

    folder: str | None = option(default=None, help="Folder with one subfolder of images per concept.")
    dataset: str | None = option(
        default=None, help="Folder or Hub repository of an image dataset, instead of --folder."
    )
    split: str = option(default="test", help="Split of --dataset.")
    image_column: str = option(default="image", help="Column of --dataset with the images.")
    label_column: str = option(default="label", help="Column of --dataset with the names or class labels.")
    renamed: str | None = option(
        default=None, help='JSON file of other words for some names, such as {"Parking": "parking lot"}.'
    )
    templates: list[str] = option(
        default_factory=lambda: ["geoalign"],
        help="Template sets that concepts are put into.",
        choices=TEMPLATE_SETS,
    )
    output_dir: str = option(
        default="outputs/evaluate_scenes",
        help="Folder of metrics.json and a confusion matrix per template set.",
    )
    save_embeds: bool = option(default=False, help=SAVE_HELP)


def evaluate_scenes(
    options: SceneTaskOptions, model_options: ModelOptions, image_options: ImageOptions
) -> Path:
    """Score a model on zero-shot scene classification."""
    images, names = load_scenes(options)
    renamed = read_json(options.renamed) if options.renamed else None
    embedder, output_dir, metrics = model_options.load(image_options), Path(options.output_dir), {}
    for templates in options.templates:
        evaluator = SceneClassificationEvaluator(
            images,
            names,
            templates=templates,
            renamed=renamed,
            arrays_path=output_dir / f"scenes_{templates}.npz" if options.save_embeds else None,
        )
        scores = metrics[f"scenes, {templates}"] = evaluator(embedder)
        path = output_dir / f"confusion_{templates}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    data: dict[str, str | None] = {"dataset": name_dataset(str(options.folder or options.dataset))}
    if options.dataset:
        data["split"] = options.split
    return finish(metrics, output_dir, data)


def load_scenes(options: SceneTaskOptions) -> tuple[list, list[str]]:
    """Load the images of scenes and the name of each.

    Raises:
        ValueError: If both a folder and a dataset are given or neither, or the dataset lacks a column.
    """
    if bool(options.folder) == bool(options.dataset):
        raise ValueError("Expected either --folder or --dataset. Give one of them.")
    if options.folder:
        paths = list_images(options.folder)
        return paths, [path.parent.name for path in paths]
    dataset = load_dataset(str(options.dataset), split=options.split)
    assert isinstance(dataset, Dataset)
    columns = [options.image_column, options.label_column]
    if missing := sorted(set(columns) - set(dataset.column_names)):
        raise ValueError(
            f"{options.dataset} lacks the columns {missing}; it has {dataset.column_names}. "
            "Name its columns with --image_column and --label_column."
        )
    labels = list(dataset[options.label_column])
    feature = dataset.features[options.label_column]
    names = [feature.int2str(label) for label in labels] if hasattr(feature, "int2str") else labels
    return dataset[options.image_column], names


@dataclass
class RetrievalTaskOptions:
    """The protocol of retrieval, and its captions where they are not in the rows."""

    captions: str | None = option(
        default=None,
        help="Caption file in the format of RSICD (with --images), instead of --dataset.",
    )
    protocols: list[str] = option(
        default_factory=lambda: ["all"],
        help="Treatment of equal captions: all keeps every caption; unique counts equal captions and images "
        "once.",
        choices=CAPTION_PREFIXES,
    )
    prefix: str | None = option(
        default=None, help="Words before every caption. By default, those of the protocol."
    )
    output_dir: str = option(default="outputs/evaluate_retrieval", help="Folder of metrics.json.")
    save_embeds: bool = option(default=False, help=SAVE_HELP)


def evaluate_retrieval(
    options: RetrievalTaskOptions,
    row_options: RowOptions,
    model_options: ModelOptions,
    image_options: ImageOptions,
) -> Path:
    """Score a model on retrieval: find the captions of images, and the images of captions."""
    if not options.captions:
        row_options.check()
    elif row_options.dataset != TEST_ROWS:
        raise ValueError(f"--captions {options.captions} is given beside --dataset. Give one of them.")
    elif not row_options.images:
        raise ValueError(f"--captions is {options.captions}, but --images is not given. Give both.")
    embedder, output_dir, metrics = model_options.load(image_options), Path(options.output_dir), {}
    if options.captions:
        has_splits = any(entry["split"] for entry in list_captions(options.captions))
        split = row_options.split or ("test" if has_splits else None)
        rows = build_rows(read_captions(options.captions, row_options.images, split))
        rows = decode_images(rows, image_options=embedder.image_options)
        data = {"dataset": name_dataset(options.captions), "split": split}
    else:
        rows = row_options.load(embedder.image_options)
        data = row_options.describe(rows)
    for protocol in options.protocols:
        path = output_dir / f"captions_{protocol}.npz" if options.save_embeds else None
        evaluator = CaptionRetrievalEvaluator(rows, protocol, prefix=options.prefix, arrays_path=path)
        metrics[f"retrieval, {protocol}"] = evaluator(embedder)
    return finish(metrics, output_dir, data)


@dataclass
class ChoiceTaskOptions:
    """The questions."""

    questions: list[str] = option(
        help="JSON files of questions, one per subject. A file is a list of objects with file_name (relative "
        "to the file), options (by letter) and answer. The options must be complete statements."
    )
    output_dir: str = option(default="outputs/evaluate_choice", help="Folder of metrics.json.")
    save_embeds: bool = option(default=False, help=SAVE_HELP)


def evaluate_choice(
    options: ChoiceTaskOptions, model_options: ModelOptions, image_options: ImageOptions
) -> Path:
    """Score a model on multiple-choice questions whose options are statements about the image."""
    questions = []
    for path in map(Path, options.questions):
        for entry in read_entries(path, ("file_name", "options", "answer")):
            letters = list(entry["options"])
            if entry["answer"] not in letters:
                raise ValueError(
                    f"{path} has the answer {entry['answer']!r} to a question with the options {letters}. "
                    "Give the letter of an option."
                )
            questions.append(
                {
                    "image": path.parent / entry["file_name"],
                    "options": list(entry["options"].values()),
                    "answer": letters.index(entry["answer"]),
                    "subject": path.stem,
                }
            )
    output_dir = Path(options.output_dir)
    path = output_dir / "choice.npz" if options.save_embeds else None
    scores = StatementChoiceEvaluator(questions, arrays_path=path)(model_options.load(image_options))
    names = [name_dataset(path) for path in options.questions]
    return finish({"choice": scores}, output_dir, {"dataset": ", ".join(names)})


@dataclass
class LocalizationTaskOptions:
    """The images and phrases, and how maps are made."""

    image: str | None = option(default=None, help="Large image whose maps are drawn (with --phrases).")
    phrases: list[str] = option(default_factory=list, help="Phrases to look for in --image.")
    queries: str | None = option(
        default=None,
        help="JSON file of phrases with their polygons, in the format of AIR-SLT (with --images). Its maps "
        "are also scored.",
    )
    images: str | None = option(default=None, help="Folder of the images of --queries.")
    map_sources: list[str] = option(
        default_factory=lambda: ["tile"],
        help="Sources of a map: tile embeds tiles as images; dense reads the patches of a GeoAlignCLIP.",
        choices=TILE_SIDES,
    )
    stride: int = option(default=4, help="Side of a cell of the map, in pixels.")
    through_jpeg: bool = option(
        default=False,
        help="JPEG compression of the maps before they are scored, as in the published protocol.",
    )
    output_dir: str = option(
        default="outputs/evaluate_localization", help="Folder of the maps and metrics.json."
    )


def evaluate_localization(
    options: LocalizationTaskOptions, model_options: ModelOptions, image_options: ImageOptions
) -> Path:
    """Draw maps of where phrases are true in large images, and score them where polygons are given."""
    given = [name for name in ("image", "phrases", "queries", "images") if getattr(options, name)]
    if given not in (["image", "phrases"], ["queries", "images"]):
        found = " ".join(f"--{name}" for name in given) or "neither"
        raise ValueError(f"Expected --image with --phrases, or --queries with --images; found {found}.")
    if options.queries:
        entries = read_entries(Path(options.queries), ("jpg_name", "caption", "points"))
        entries.sort(key=lambda entry: entry["jpg_name"])  # queries of one image share its tiles
        queries: list[dict] = [
            {
                "image": Path(str(options.images), entry["jpg_name"]),
                "phrase": entry["caption"],
                "polygons": entry["points"],
            }
            for entry in entries
        ]
    else:
        queries = [{"image": str(options.image), "phrase": phrase} for phrase in options.phrases]
    embedder, output_dir, metrics = model_options.load(image_options), Path(options.output_dir), {}
    for source in options.map_sources:
        if options.queries:
            path = output_dir / f"maps_{source}.npz"
            evaluator = LocalizationEvaluator(
                queries,
                source,
                stride=options.stride,
                through_jpeg=options.through_jpeg,
                arrays_path=path,
            )
            metrics[f"localization, {source}"] = evaluator(embedder)
            maps = list(np.load(path).values())
        else:
            cosines = build_score_maps(
                embedder,
                embedder.read_image(str(options.image)),
                options.phrases,
                source,
                stride=options.stride,
            )
            maps = [normalize_map(values, options.stride) for values in cosines]
        for number, (query, values) in enumerate(zip(queries, maps, strict=True)):
            path = output_dir / f"map_{source}_{number}.png"
            draw_score_map(
                embedder.read_image(query["image"]), values, query["phrase"], path, query.get("polygons")
            )
            print(f"{path}: {query['phrase']}")
    if not options.queries:
        return output_dir
    return finish(metrics, output_dir, {"dataset": name_dataset(options.queries)})


def evaluate_detection(
    options: DetectionTaskOptions,
    detection: DetectionOptions,
    row_options: RowOptions,
    model_options: ModelOptions,
    image_options: ImageOptions,
) -> Path | None:
    """Score detections by average precision and recall, as COCO does."""
    row_options.check()
    embedder = model_options.load(image_options)
    evaluator = options.build(detection, row_options, embedder.image_options)
    if options.calibrate:
        fitted = evaluator.calibrate(embedder)
        print(" ".join(f"--{name} {value:.4f}" for name, value in fitted.items()))
        return None
    metrics = {"detection": evaluator(embedder)}
    return finish(metrics, Path(options.output_dir), row_options.describe(evaluator.rows))


def read_entries(path: Path, keys: tuple[str, ...]) -> list[dict]:
    """Read a JSON file that holds a list of objects with the given keys.

    Raises:
        ValueError: If the file holds something else.
    """
    entries = parse_json(path, read_text(path), f"a list of objects with {keys}")
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}; expected a list of objects with {keys}.")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not set(keys) <= set(entry):
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"{path}: entry {i} has {found}; expected an object with {keys}.")
    return entries


def finish(metrics: dict[str, dict], output_dir: Path, data: dict[str, str | None]) -> Path:
    """Write all scores to `metrics.json`, each with the data set and its split, and print them."""
    path = output_dir / "metrics.json"
    for scores in metrics.values():
        scores["protocol"] = data | scores["protocol"]
    write_metrics(path, metrics)
    for title, scores in metrics.items():
        counts = {name: value for name, value in scores.items() if isinstance(value, int)}
        print(f"{title} ({', '.join(f'{value} {name[4:]}' for name, value in counts.items())})")
        for name, value in list_numbers(scores).items():
            print(f"  {name:40} {value:.4f}")
        for heading, table in list_tables(scores).items():
            print(f"  by {heading.replace('_', ' ')}")
            for name, (score, count) in table.items():
                print(f"    {name:38} {score:.4f}   ({count})")
    return path
