"""Evaluator of open-vocabulary detection: proposals are named, and compared with ground-truth boxes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from ..data.schema import check_columns, list_concepts
from ..detection.calibration import fit_calibration, match_proposals
from ..detection.detector import DetectionOptions, Detector
from ..detection.proposals import Proposals
from ..embedding.embedder import Embedder
from ..embedding.templates import split_concepts
from .evaluator import Evaluator
from .metrics.detection import score_detections


@dataclass(eq=False, repr=False)
class DetectionEvaluator(Evaluator):
    """Detect the objects of images, and score the detections by the protocol of COCO.

    The result holds the scores of `score_detections`. Regions that are marked as difficult are ignored. Needs
    the extra `[detect]`.

    Args:
        rows: dataset of rows; with `oriented`, rows with quads.
        proposals: proposals of each row. None makes them by `options.proposer`.
        concepts: labels to detect. None takes those that occur in the rows.
        options: settings of the detection. The default keeps all detections with a score of at least 0.01.
        synonyms: further words for some of the concepts.
        novel: concepts that training has not seen. They are scored apart from the others, the base concepts.
        oriented: whether to compare oriented boxes. The proposals need quads then.
        proposal_name: name of the proposals, for the protocol.
        arrays_path: `.npz` file, see `Evaluator`. It receives `boxes`, `labels`, `scores` and `images` of all
            detections.

    Raises:
        ValueError: if the rows lack columns, boxes or quads, the proposals are for another number of images
            or have no quads, or a concept is unknown.
    """

    name, primary_metric = "detection", "AP50"
    task = "open-vocabulary detection from proposals"

    rows: Dataset
    proposals: Sequence[Proposals] | None = None
    concepts: Sequence[str] | None = None
    _: KW_ONLY
    options: DetectionOptions = field(default_factory=lambda: DetectionOptions(threshold=0.01))
    synonyms: Mapping[str, Sequence[str]] | None = None
    novel: Sequence[str] = ()
    oriented: bool = False
    proposal_name: str | None = None

    def __post_init__(self):
        check_columns(self.rows)
        occurring = list_concepts(self.rows)
        self.concepts = occurring if self.concepts is None else split_concepts(self.concepts)
        if unknown := sorted({*occurring, *self.novel} - set(self.concepts)):
            raise ValueError(
                f"the rows or novel name the concepts {unknown}, which are not among {list(self.concepts)}."
            )
        if not occurring:
            raise ValueError(f"Expected rows with regions; none of the {len(self.rows)} rows has a box.")
        if self.proposals is not None and len(self.proposals) != len(self.rows):
            raise ValueError(
                f"Expected proposals for each of the {len(self.rows)} rows; found {len(self.proposals)}."
            )
        if self.oriented:
            lacking = [i for i, row in enumerate(self._list_regions()) if row["boxes"] and not row["quads"]]
            if lacking:
                raise ValueError(f"oriented needs rows with quads; the rows {lacking[:5]} have none.")
            if self.proposals is None or any(part.quads is None for part in self.proposals):
                raise ValueError("oriented needs proposals with quads. Read them with oriented=True.")

    def calibrate(self, embedder: Embedder) -> dict[str, float]:
        """Fit the temperature and the bias of the background on these rows, see `fit_calibration`."""
        detector = Detector(embedder, self.concepts, self.options, self.synonyms)
        parts = []
        for row, image, proposals in self._walk(embedder):
            proposals = detector.propose(image) if proposals is None else proposals
            boxes = torch.tensor(row["boxes"], dtype=torch.float64).view(-1, 4)
            labels = torch.tensor(self._number(row), dtype=torch.long)
            targets = match_proposals(proposals, boxes, labels, len(self.concepts))
            parts.append((detector.compare(image, proposals), targets))
        return fit_calibration(parts, detector.vocabulary)

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        detector = Detector(embedder, self.concepts, self.options, self.synonyms)
        truth, found, num_proposals = [], [], 0
        for row, image, proposals in self._walk(embedder):
            proposals = detector.propose(image) if proposals is None else proposals
            num_proposals += len(proposals)
            found.append(vars(detector(image, proposals)))
            ignored = row["difficult"] or [False] * len(row["boxes"])
            regions = {name: row[name] for name in ("boxes", "quads")}
            truth.append(regions | {"labels": self._number(row), "ignored": ignored})
        self._save(
            boxes=torch.cat([image["boxes"] for image in found]),
            labels=torch.cat([image["labels"] for image in found]),
            scores=torch.cat([image["scores"] for image in found]),
            images=np.repeat(np.arange(len(found)), [len(image["labels"]) for image in found]),
        )
        scores = score_detections(
            truth, found, self.concepts, self.novel, self.oriented, max_detections=self.options.top_k
        )
        source, contexts = embedder.resolve_view()
        protocol = {
            "proposals": self.proposal_name or ("given" if self.proposals else self.options.proposer),
            "oriented": self.oriented,
            "concepts": list(self.concepts),
            "novel": list(self.novel),
            "synonyms": dict(self.synonyms or {}),
            "words": detector.vocabulary.words,
            "options": dataclasses.asdict(self.options),
            "region_source": source,
            "context": contexts[0],
        }
        return scores | {"num_proposals": num_proposals}, protocol

    def _list_regions(self) -> Dataset:
        return self.rows.select_columns(
            [name for name in ("boxes", "quads", "concepts", "difficult") if name in self.rows.column_names]
        )

    def _walk(self, embedder: Embedder):
        """Yield each row with its image and its proposals."""
        proposals = self.proposals or [None] * len(self.rows)
        progress = logging.tqdm(self.rows, desc="images", total=len(self.rows), leave=False)
        for row, given in zip(progress, proposals, strict=True):
            yield {"quads": [], "difficult": []} | row, embedder.read_image(row["image"]), given

    def _number(self, row: dict) -> list[int]:
        return [self.concepts.index(concept) for concept in row["concepts"]]
