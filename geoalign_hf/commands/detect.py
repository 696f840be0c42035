"""`geoalign-hf detect`, and the options of `geoalign-hf evaluate detection`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers.utils import logging

from ..detection.detector import DetectionOptions, Detector
from ..detection.proposals import read_proposals
from ..detection.sources import list_results, list_sources, number_labels, write_results
from ..evaluation.detection import DetectionEvaluator
from ..images import ImageOptions
from ..options import option
from ..storage import check_output_file, read_json
from .inputs import ModelOptions, RowOptions


@dataclass
class LabelOptions:
    """What is detected."""

    _argument_group_name = "labels"

    labels: list[str] = option(default_factory=list, help="Names of the objects to detect.")
    synonyms: str | None = option(
        default=None, help='JSON file of further words for some labels, such as {"ship": ["vessel"]}.'
    )

    def read_synonyms(self) -> dict | None:
        """Check that there are labels, and read their synonyms, before a model is loaded."""
        if not self.labels:
            raise ValueError("there is nothing to detect. Give names with --labels.")
        return read_json(self.synonyms) if self.synonyms else None

    def print_counts(self, found: Iterable[str]) -> None:
        """Print the number of detections of each label."""
        counts = Counter(found)
        for label in self.labels:
            print(f"{counts[label]:6} {label}")


@dataclass
class DetectOptions:
    """The images and their proposals."""

    _positional = ("images",)

    images: str = option(help="Image, or folder of images. Images in its subfolders are included.")
    coco: str | None = option(
        default=None,
        help="COCO file that lists the images, with file names relative to the folder of images. "
        "The results use its ids.",
    )
    proposals: str | None = option(
        default=None,
        help="JSON file of proposals in COCO's format of results: image_id, bbox and score. An image_id is "
        "that of --coco or, without it, the name of a file. By default, --proposer makes proposals.",
    )
    oriented: bool = option(
        default=False,
        help="Detection of oriented boxes, which are read from the segmentation of each proposal.",
    )
    output: str = option(default="outputs/detect/detections.json", help="File of the detections.")


def detect(
    options: DetectOptions,
    label_options: LabelOptions,
    detection: DetectionOptions,
    model_options: ModelOptions,
    image_options: ImageOptions,
) -> Path:
    """Detect objects: name proposals with labels given in words.

    Writes a JSON list in COCO's format of results, which pycocotools reads. Without proposals, the
    windows of a grid are named.
    """
    check_output_file(options.output)
    synonyms = label_options.read_synonyms()
    if options.oriented and not options.proposals:
        raise ValueError("--oriented needs oriented boxes, but --proposals is not given. Give both.")
    sources = list_sources(options.images, options.coco)
    given = read_proposals(options.proposals, sources, options.oriented) if options.proposals else {}
    embedder = model_options.load(image_options)
    detector = Detector(embedder, label_options.labels, detection, synonyms)
    category_ids = number_labels(label_options.labels, options.coco)
    results = []
    for image_id, path in logging.tqdm(sources.items(), desc="images", total=len(sources)):
        detections = detector(embedder.read_image(path), given.get(image_id))
        results += list_results(image_id, detections, label_options.labels, category_ids)
    write_results(options.output, results)
    label_options.print_counts(result["label"] for result in results)
    print(f"{len(results)} detections in {len(sources)} images")
    return Path(options.output)


@dataclass
class DetectionTaskOptions:
    """The proposals, and what is scored."""

    proposals: str | None = option(
        default=None,
        help="JSON file of proposals in COCO's format of results. An image_id is that of a COCO file in "
        "--dataset, or else the source of a row, which must be a whole image. By default, --proposer makes "
        "proposals.",
    )
    oriented: bool = option(
        default=False, help="Scores of oriented boxes, by the overlap of the quads of rows and proposals."
    )
    novel: list[str] = option(
        default_factory=list, help="Concepts that training has not seen. They are also scored by themselves."
    )
    calibrate: bool = option(
        default=False,
        help="Calibration on these rows, without scores. It prints --temperature and --background_bias.",
    )
    output_dir: str = option(default="outputs/evaluate_detection", help="Folder of metrics.json.")
    save_boxes: bool = option(
        default=False, help="Storage of the detections behind the scores, in an .npz file."
    )

    def build(
        self, detection: DetectionOptions, row_options: RowOptions, image_options: ImageOptions
    ) -> DetectionEvaluator:
        """Load the rows and the proposals, and build the evaluator."""
        rows, given = row_options.load(image_options), None
        if self.proposals:
            check_sources(rows)
            image_ids: dict = {source: source for source in rows["source"]}
            if row_options.dataset.endswith(".json"):
                folder = Path(str(row_options.images))
                sources = list_sources(folder, row_options.dataset)
                image_ids = {path.relative_to(folder).as_posix(): key for key, path in sources.items()}
            found = read_proposals(self.proposals, image_ids.values(), self.oriented)
            given = [found[image_ids[source]] for source in rows["source"]]
        return DetectionEvaluator(
            rows,
            given,
            options=detection,
            novel=self.novel,
            oriented=self.oriented,
            proposal_name=Path(self.proposals).name if self.proposals else None,
            arrays_path=Path(self.output_dir) / "detections.npz" if self.save_boxes else None,
        )


def check_sources(rows: Dataset) -> None:
    """Check that every row is a whole image with a source of its own, by which its proposals are found.

    Raises:
        ValueError: If a row has no source, is only a part of it, or shares it with another row.
    """
    advice = "omit --proposals, or pass the proposals of each row to DetectionEvaluator in Python."
    seen: dict[str, int] = {}
    columns = [
        rows[name] if name in rows.column_names else [None] * len(rows) for name in ("source", "window")
    ]
    for i, (source, window) in enumerate(zip(*columns, strict=True)):
        if source is None:
            raise ValueError(f"row {i} has no source by which its proposals are found. Add it, {advice}")
        if window:
            raise ValueError(
                f"row {i} is the window {window} of {source!r}, but proposals are in pixels of the whole "
                f"image. Build the rows without --tile, {advice}"
            )
        if source in seen:
            raise ValueError(
                f"rows {seen[source]} and {i} have the same source {source!r}, so its proposals could be of "
                f"either. Give rows with different sources, {advice}"
            )
        seen[source] = i
