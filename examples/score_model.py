"""Score a model with evaluators: concepts of boxes, hard negatives, and captions.

    python examples/score_model.py outputs/train/final outputs/rows

An evaluator is built from data and called with an embedder. `geoalign-hf evaluate` runs them from the shell.
"""

import sys

from transformers import AutoModel, AutoProcessor

from geoalign_hf import (
    CaptionRetrievalEvaluator,
    Embedder,
    HardNegativeEvaluator,
    RegionClassificationEvaluator,
    load_rows,
)


def main(model: str, dataset: str, split: str = "test") -> None:
    """Load a model and rows, and print the main score of each task."""
    rows = load_rows(dataset, split)
    embedder = Embedder(AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model))
    evaluators = (
        RegionClassificationEvaluator(rows, templates="overhead"),
        HardNegativeEvaluator(rows),
        CaptionRetrievalEvaluator(rows, captions="unique"),
    )
    for evaluator in evaluators:
        scores = evaluator(embedder)
        print(f"{evaluator.name}: {evaluator.primary_metric} {scores[evaluator.primary_metric]:.4f}")
        print(f"  measured as {scores['protocol']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
