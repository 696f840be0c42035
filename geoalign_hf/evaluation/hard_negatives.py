"""Hard negatives: is a region more similar to its own phrase than to nearly correct ones?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from ..embedding.embedder import Embedder
from .evaluator import RegionEvaluator
from .metrics.choice import score_hard_negatives


@dataclass(eq=False, repr=False)
class HardNegativeEvaluator(RegionEvaluator):
    """Compare the phrase of every region with its hard negatives.

    The result holds the scores of `score_hard_negatives`. `blind_accuracy` and `blind_per_kind` are the same
    scores when every region is replaced by the mean of all regions: what can be answered without looking at
    the region.

    Args:
        rows: dataset of rows with `hard_negatives`, and with `negative_kinds` if it is known what they
            change.
        region_source: see `RegionEvaluator`, as for the following.
        context: see there.
        views: see there.
        arrays_path: see there.

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
        return scores, self._describe_regions(embedder)


def list_negatives(rows, column: str = "hard_negatives") -> list[list[str]]:
    """List the entries of each region in a column that a dataset may lack and a row may leave empty."""
    boxes_of_rows = rows["boxes"]
    entries = rows[column] if column in rows.column_names else [None] * len(rows)
    pairs = zip(boxes_of_rows, entries, strict=True)
    return [texts for boxes, of_row in pairs for texts in (of_row or [[]] * len(boxes))]
