"""Rows to one batch: a list of rows in, one call to the processor, tensors of fixed meaning out.

All texts of a batch, whatever they describe, are tokenized together and once each; index tensors say
which text belongs to which image or region.
"""

import hashlib

import torch

from .model.processing_geoalign_clip import CONCEPT_TEMPLATES, GeoAlignCLIPProcessor

NO_TEXT = -100
# What the batch holds for the losses alone; the rest enters the model.
LOSS_KEYS = frozenset(
    f"{name}_{kind}" for name in ("caption", "description", "phrase", "concept") for kind in ("index", "ids")
)


class RowCollator:
    """Makes a training batch of rows.

    Args:
        processor: prepares images, regions and texts. Texts longer than the text tower are cut.
        max_regions: R; every batch is padded to it, so that shapes agree on all processes.
        templates: T sentences that word a concept.
    """

    def __init__(self, processor: GeoAlignCLIPProcessor, max_regions: int, templates=CONCEPT_TEMPLATES):
        self.processor = processor
        self.max_regions = max_regions
        self.templates = tuple(templates)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: B rows.

        Returns:
            What the model takes (`pixel_values`, regions, `region_mask`, `input_ids`, `attention_mask`), and
            what the losses take beside its output: `caption_index`, `description_index` (B,), `phrase_index`
            (B, R) and `concept_index` (B, R, T), rows of `input_ids`; `caption_ids`, `description_ids` (B,),
            `phrase_ids` and `concept_ids` (B, R), a stable hash of the words, -100 where there is none.

        Raises:
            ValueError: if a row has more regions than `max_regions`, or regions that cannot be used.
        """
        B, R, T = len(rows), self.max_regions, len(self.templates)
        texts: dict[str, int] = {}
        batch = {f"{name}_index": torch.zeros(B, dtype=torch.long) for name in ("caption", "description")}
        batch |= {"phrase_index": torch.zeros(B, R, dtype=torch.long)}
        batch |= {"concept_index": torch.zeros(B, R, T, dtype=torch.long)}
        batch |= {f"{name}_ids": torch.full((B,), NO_TEXT) for name in ("caption", "description")}
        batch |= {f"{name}_ids": torch.full((B, R), NO_TEXT) for name in ("phrase", "concept")}

        def place(name: str, position, words: str, wordings: list[str]):
            indices = [texts.setdefault(wording, len(texts)) for wording in wordings]
            batch[f"{name}_index"][position] = torch.tensor(indices if name == "concept" else indices[0])
            batch[f"{name}_ids"][position] = hash_words(words)

        regions = self._collect_regions(rows)
        inputs = self.processor(
            images=[row["image"] for row in rows], max_regions=R, return_tensors="pt", **regions
        )
        for i, row in enumerate(rows):
            if row.get("captions"):
                place("caption", i, row["captions"][0], [row["captions"][0]])
            if row.get("description"):
                place("description", i, row["description"], [row["description"]])
            for r, (phrase, concept) in enumerate(zip(row["phrases"], row["concepts"], strict=True)):
                place("phrase", (i, r), phrase, [phrase])
                place("concept", (i, r), concept, [template.format(concept) for template in self.templates])
        if not texts:
            raise ValueError(f"none of the {B} rows of this batch has any words. Give captions or regions.")
        tokens = self.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return dict(inputs) | dict(tokens) | batch

    def _collect_regions(self, rows: list[dict]) -> dict[str, list]:
        """Take quads if every row with regions has them, else boxes."""
        has_quads = all(row.get("quads") for row in rows if row["boxes"]) and any(
            row["boxes"] for row in rows
        )
        if has_quads:
            return {"quads": [row["quads"] if row["boxes"] else [] for row in rows]}
        return {"boxes": [row["boxes"] for row in rows]}


def hash_words(words: str) -> int:
    """Give words a number that is the same on every process and in every run, at least 0.

    Example:
        >>> hash_words("a ship") == hash_words("a ship") != hash_words("two ships")
        True
    """
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1
