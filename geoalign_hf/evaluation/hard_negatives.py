"""Hard negatives: is a region more similar to its own phrase than to nearly correct ones?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from ..captioning.balance import Contrast, list_contrasts, match_reciprocals, score_text_only
from ..embedding.embedder import Embedder
from .evaluator import RegionEvaluator
from .metrics.choice import TIE, score_hard_negatives


@dataclass(eq=False, repr=False)
class HardNegativeEvaluator(RegionEvaluator):
    """Compare the phrase of every region with its hard negatives.

    The result holds the scores of `score_hard_negatives`. `blind_accuracy` and `blind_per_kind` are the same
    scores when every region is replaced by the mean of all regions: what can be answered without looking at
    the region. `text_only_accuracy` is what a bag of words with logistic regression tells from the texts
    alone, see `captioning.text_baseline`; it needs scikit-learn.

    Where the rows have balanced hard negatives (`captioning.balance`), pairs of regions with exchanged
    phrases are scored, too. `pair_accuracy` is the fraction of their negatives that are beaten; text alone
    gives 0.5. `group_accuracy` is the fraction of the `num_pairs` pairs in which both are beaten, as in
    Winoground. A guess gives 0.25, and text alone 0. Ties count against the model.

    Args:
        rows: dataset of rows with `hard_negatives`, and with `negative_kinds` if it is known what they
            change.
        region_source: source of a region's embedding, see `RegionEvaluator`.
        context: side of windows and crops, see `RegionEvaluator`.
        views: several contexts, see `RegionEvaluator`.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: also if no region has a hard negative.
    """

    name, primary_metric = "hard_negatives", "accuracy"
    task = "a phrase against its hard negatives"

    def __post_init__(self):
        super().__post_init__()
        if not any(list_negatives(self.rows)):
            raise ValueError(
                "Expected rows with hard negatives; no region has one. Give rows that have hard_negatives."
            )

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        phrases = [phrase for of_row in self.rows["phrases"] for phrase in of_row]
        negatives = list_negatives(self.rows)
        kinds = list_negatives(self.rows, "negative_kinds")  # empty for rows whose kinds are not known
        kinds = [of_one or ["unknown"] * len(texts) for of_one, texts in zip(kinds, negatives, strict=True)]
        region_embeds = self._embed_regions(embedder)
        texts = [*phrases, *(text for of_one in negatives for text in of_one)]
        text_embeds = embedder.embed_text(texts)
        region_ids = [*range(len(phrases)), *(i for i, of_one in enumerate(negatives) for _ in of_one)]
        self._save(
            regions=region_embeds,
            texts=text_embeds,
            region_ids=np.array(region_ids),
            phrases=np.array(texts),
        )
        bounds = len(phrases) + np.cumsum([0, *map(len, negatives)])

        def score(embeds: torch.Tensor) -> dict:
            cosines = (embeds[region_ids] * text_embeds).sum(dim=-1).numpy()
            against = [cosines[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
            return score_hard_negatives(cosines[: len(phrases)], against, kinds)

        mean_embed = normalize(region_embeds.mean(dim=0, keepdim=True), dim=-1)
        blind = score(mean_embed.expand_as(region_embeds))
        scores = score(region_embeds)
        scores |= {"blind_accuracy": blind["accuracy"], "blind_per_kind": blind["per_kind"]}
        columns = {"phrases", "hard_negatives", "negative_kinds"} & set(self.rows.column_names)
        text_rows = self.rows.select_columns(sorted(columns)).to_list()
        cosines = (region_embeds[region_ids] * text_embeds).sum(dim=-1).numpy()
        scores |= score_pairs(text_rows, cosines, bounds)
        baseline = score_text_only(text_rows)
        if baseline and baseline["accuracy"] is not None:
            scores |= {"text_only_accuracy": baseline["accuracy"], "text_only_per_kind": baseline["per_kind"]}
        return scores, self._describe_regions(embedder)


def score_pairs(rows: Sequence[dict], cosines: np.ndarray, bounds: np.ndarray) -> dict:
    """Score pairs of regions whose phrases are each other's hard negatives.

    Args:
        rows: N regions in rows with `phrases` and `hard_negatives`.
        cosines: Cosines of the N regions with their phrases, then with the hard negatives of each in turn.
        bounds: (N + 1,), indices at which the cosines of the hard negatives of each region begin and end.

    Returns:
        `pair_accuracy`, `group_accuracy` and `num_pairs`; nothing if there are no pairs.
    """
    first_regions = np.cumsum([0, *(len(row["phrases"]) for row in rows)])

    def is_beaten(contrast: Contrast) -> bool:
        region = first_regions[contrast.row] + contrast.region
        return bool(cosines[region] > cosines[bounds[region] + contrast.number] + TIE)

    pairs = match_reciprocals(list_contrasts(rows))
    if not pairs:
        return {}
    wins = np.array([[is_beaten(contrast) for contrast in pair] for pair in pairs])
    return {
        "pair_accuracy": float(wins.mean()),
        "group_accuracy": float(wins.all(axis=1).mean()),
        "num_pairs": len(pairs),
    }


def list_negatives(rows, column: str = "hard_negatives") -> list[list[str]]:
    """List the entries of each region in a column that a dataset may lack and a row may leave empty."""
    boxes_of_rows = rows["boxes"]
    entries = rows[column] if column in rows.column_names else [None] * len(rows)
    pairs = zip(boxes_of_rows, entries, strict=True)
    return [texts for boxes, of_row in pairs for texts in (of_row or [[]] * len(boxes))]
