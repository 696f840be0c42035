"""Average precision and recall of detections, upright or oriented, by the protocol of COCO."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch

from ...detection.overlap import measure_quad_ious
from .checks import mean

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def score_detections(
    truth: Sequence[dict],
    detections: Sequence[dict],
    concepts: Sequence[str],
    novel: Sequence[str] = (),
    oriented: bool = False,
    max_detections: int = 100,
) -> dict:
    """Score detections by pycocotools.

    Args:
        truth: for each image a dictionary with `boxes` (N, 4), xyxy, or with `oriented` `quads` (N, 4, 2);
            `labels` (N,), indices of concepts; and `ignored` (N,), True for what counts neither as found nor
            as missed.
        detections: for each image a dictionary with `boxes` or `quads`, `labels` and `scores`.
        concepts: C names.
        novel: names of the concepts that training has not seen.
        oriented: whether boxes overlap by the intersection over union of their quads.
        max_detections: number of detections per image and concept that count.

    Returns:
        `mAP` (mean over IoU thresholds from 0.5 to 0.95 and over concepts), `AP50`, `AP75`, and `AR`, the
        recall at `max_detections`; with `novel` the same with the suffixes `_base` and `_novel`; AP50 and the
        number of boxes `per_concept`; `num_boxes`, `num_images` and `num_detections`.

    Raises:
        ValueError: if the numbers of images differ, there are no boxes, or a novel concept is unknown.
    """
    if len(truth) != len(detections):
        raise ValueError(f"Expected detections of {len(truth)} images; found those of {len(detections)}.")
    if unknown := sorted(set(novel) - set(concepts)):
        raise ValueError(f"novel names {unknown}, which are not among the concepts {list(concepts)}.")
    counts = np.zeros(len(concepts), dtype=int)
    for image in truth:
        is_scored = ~np.asarray(image["ignored"], dtype=bool)
        counts += np.bincount(np.asarray(image["labels"], dtype=int)[is_scored], minlength=len(concepts))
    if not counts.any():
        raise ValueError("The images have no boxes that count, so there is nothing to score.")
    precision, recall = _evaluate(truth, detections, len(concepts), oriented, max_detections)
    present = [c for c in range(len(concepts)) if counts[c]]
    groups = {"": present}
    if novel:
        groups["_base"] = [c for c in present if concepts[c] not in novel]
        groups["_novel"] = [c for c in present if concepts[c] in novel]
    scores = {}
    for suffix, group in groups.items():
        if group:
            scores[f"mAP{suffix}"] = mean(precision[:, group].mean(axis=0))
            scores[f"AP50{suffix}"] = mean(precision[0, group])
            scores[f"AP75{suffix}"] = mean(precision[5, group])
            scores[f"AR{suffix}"] = mean(recall[:, group].mean(axis=0))
    return scores | {
        "num_images": len(truth),
        "num_boxes": int(counts.sum()),
        "num_detections": sum(len(image["labels"]) for image in detections),
        "per_concept": {concepts[c]: float(precision[0, c]) for c in present},
        "num_per_concept": {concepts[c]: int(counts[c]) for c in present},
    }


def _evaluate(truth, detections, num_concepts: int, oriented: bool, max_detections: int):
    """Run pycocotools: average precision and largest recall, both (thresholds, concepts)."""
    from pycocotools.coco import COCO  # optional, of the extra [detect]
    from pycocotools.cocoeval import COCOeval

    class OrientedEvaluation(COCOeval):
        """COCO's evaluation with the overlaps of quads."""

        def computeIoU(self, imgId, catId):  # noqa: N802, D102 - the name is theirs
            found, boxes = self._dts[imgId, catId], self._gts[imgId, catId]
            if not found and not boxes:
                return []
            order = np.argsort([-entry["score"] for entry in found], kind="mergesort")
            found = [found[i] for i in order[: self.params.maxDets[-1]]]
            quads = [
                torch.tensor([entry["quad"] for entry in part], dtype=torch.float64).view(-1, 4, 2)
                for part in (found, boxes)
            ]
            ious = measure_quad_ious(*quads).numpy()
            # As for upright boxes, what is ignored overlaps by the share of the detection that lies in it.
            for g, entry in enumerate(boxes):
                if entry["iscrowd"] and len(found):
                    ious[:, g] = _convert_to_shares(ious[:, g], found, entry)
            return ious

    with contextlib.redirect_stdout(io.StringIO()):
        annotations = _list_entries(truth, oriented)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": c} for c in range(num_concepts)],
            "annotations": annotations,
        }
        coco.createIndex()
        results = COCO()
        results.dataset = coco.dataset | {"annotations": _list_entries(detections, oriented)}
        results.createIndex()
        evaluation = (OrientedEvaluation if oriented else COCOeval)(coco, results, "bbox")
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (thresholds, 101 recalls, concepts)
    return precision.mean(axis=1), evaluation.eval["recall"][..., 0, 0]


def _list_entries(images: Sequence[dict], oriented: bool) -> list[dict]:
    """List annotations or results in COCO's form. Their numbers start at 1, since 0 means unmatched."""
    entries = []
    for i, image in enumerate(images):
        for n, label in enumerate(np.asarray(image["labels"], dtype=int).tolist()):
            entry = {"id": len(entries) + 1, "image_id": i, "category_id": label}
            if oriented:
                entry["quad"] = np.asarray(image["quads"][n], dtype=float).tolist()
                entry["area"] = _measure_area(entry["quad"])
            else:
                x0, y0, x1, y1 = np.asarray(image["boxes"][n], dtype=float).tolist()
                entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            if "scores" in image:
                entry["score"] = float(image["scores"][n])
            else:
                entry["iscrowd"] = int(image["ignored"][n])
            entries.append(entry)
    return entries


def _measure_area(quad: list[list[float]]) -> float:
    following = quad[1:] + quad[:1]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(quad, following, strict=True))) / 2


def _convert_to_shares(ious: np.ndarray, found: list[dict], entry: dict) -> np.ndarray:
    """Turn intersections over union into intersections over the area of the detection."""
    areas = np.array([detection["area"] for detection in found])
    return ious * (areas + entry["area"]) / (1 + ious) / areas
