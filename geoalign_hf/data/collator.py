"""Rows to one batch: a list of rows in, tensors of fixed meaning out.

All texts of a batch, whatever they describe, are tokenized together, once each, and packed end to end; index
tensors say which text belongs to which image or region. Crops of regions are prepared beside the images.
"""

import hashlib
import math
from functools import cache

import torch

from ..captioning.vocabulary import load_vocabulary
from ..model.packing_geoalign_clip import NO_TEXT, pack_texts
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES, GeoAlignCLIPProcessor

TEXT_KINDS = frozenset({"caption", "description", "phrase", "concept", "negative"})
# What the batch holds for the losses alone, and what it holds of crops; the rest enters the model.
LOSS_KEYS = frozenset({"row_ids", "negative_index", "vocabulary_index", "vocabulary_ids"}) | {
    f"{kind}_{what}" for kind in TEXT_KINDS - {"negative"} for what in ("index", "ids")
}
LOSS_KEYS |= {"concept_broader", "vocabulary_broader"}
LEVELS = max(map(len, load_vocabulary().values()))  # K: a concept has at most so many broader ones
CROP_KEYS = frozenset({"crop_values", "crop_boxes", "crop_quads", "crop_index"})


class RowCollator:
    """Collator that makes a training batch of rows.

    Args:
        processor: processor of the model, for images, regions and texts. Texts longer than the text tower
            are cut.
        max_regions: number R of regions to which every batch is padded, so that shapes agree on all
            processes.
        templates: T sentences with one `{}` for a concept.
        text_kinds: kinds of text to encode; the others keep their ids, and an index of 0.
        vocabulary: C concepts that every batch holds as texts, so that regions are contrasted with all of
            them; None contrasts regions with the concepts of the batch. Duplicates are removed.
    """

    def __init__(
        self,
        processor: GeoAlignCLIPProcessor,
        max_regions: int,
        templates=CONCEPT_TEMPLATES,
        text_kinds=TEXT_KINDS,
        vocabulary=None,
    ):
        self.processor = processor
        self.max_regions = max_regions
        self.templates = tuple(templates)
        self.text_kinds = frozenset(text_kinds)
        names = filter(None, vocabulary or ()) if "concept" in self.text_kinds else ()
        self.vocabulary: tuple[str, ...] = tuple(dict.fromkeys(names))

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: B rows. The number `row_id` is returned in `row_ids`. `crops` lists the numbers of the
                regions that are also cropped.

        Returns:
            What the model takes: `pixel_values`, regions, `region_mask`, and N texts packed into `input_ids`
            and `text_ids` (M, L).
            What the losses take beside its output: `caption_index`, `description_index` (B,), `phrase_index`
            (B, R), `concept_index` (B, R, T) and `negative_index` (B, R, K), numbers of texts, -100 where
            there is no negative; `caption_ids`, `description_ids` (B,), `phrase_ids`, `concept_ids` (B, R), a
            stable hash of the words, -100 for a missing text; `concept_broader` (B, R, K), the ids of the
            broader concepts (`captioning/vocabulary.yaml`), -100 for padding; `row_ids` (B,).
            With a vocabulary: `vocabulary_index` (C, T), numbers of texts, `vocabulary_ids` (C,) and
            `vocabulary_broader` (C, K).
            If a row has `crops`: `crop_values` (Q, 3, S, S), and `crop_index` (Q,), the region's place among
            B * R. The region in its crop is in `crop_boxes` (Q, 1, 4) or `crop_quads` (Q, 1, 4, 2).

        Raises:
            ValueError: if a row has more regions than `max_regions`, regions that cannot be used, or a
                concept that the vocabulary lacks.
        """
        B, R, T = len(rows), self.max_regions, len(self.templates)
        batch = self._collect_images(rows)
        negatives = [row.get("hard_negatives") or [] for row in rows] if "negative" in self.text_kinds else []
        K = max((len(phrases) for row in negatives for phrases in row), default=0)
        index = {name: torch.zeros(B, dtype=torch.long) for name in ("caption", "description")}
        index |= {"phrase": torch.zeros(B, R, dtype=torch.long), "concept": torch.zeros(B, R, T).long()}
        index |= {"negative": torch.full((B, R, K), NO_TEXT)}
        ids = {name: torch.full(index[name].shape[:2], NO_TEXT) for name in index if name != "negative"}
        broader = {"concept_broader": torch.full((B, R, LEVELS), NO_TEXT)}
        texts: dict[str, int] = {}

        def number(wordings: list[str]) -> list[int]:
            return [texts.setdefault(wording, len(texts)) for wording in wordings]

        def place(name: str, position, words: str | None, wordings: list[str] | None = None):
            if not words:
                return
            ids[name][position] = hash_words(words)
            if name in self.text_kinds:
                index[name][position] = torch.tensor(number(wordings or [words]))

        for i, row in enumerate(rows):
            caption = next(iter(row.get("captions") or []), None)
            place("caption", i, caption)
            place("description", i, row.get("description"))
            for r, (phrase, concept) in enumerate(zip(row["phrases"], row["concepts"], strict=True)):
                place("phrase", (i, r), phrase)
                place("concept", (i, r), concept, self._word(concept))
                broader["concept_broader"][i, r] = hash_broader(concept)
        if self.vocabulary:
            self._check_concepts(rows)
            index["vocabulary"] = torch.tensor([number(self._word(name)) for name in self.vocabulary])
            ids["vocabulary"] = torch.tensor([hash_words(name) for name in self.vocabulary])
            broader["vocabulary_broader"] = torch.stack([hash_broader(name) for name in self.vocabulary])
        for i, row in enumerate(negatives):
            for r, phrases in enumerate(row):
                index["negative"][i, r, : len(phrases)] = torch.tensor(number(phrases), dtype=torch.long)
        batch |= self._pack(list(texts), index)
        batch |= broader | {f"{name}_ids": hashes for name, hashes in ids.items()}
        return batch | {"row_ids": torch.tensor([row.get("row_id", NO_TEXT) for row in rows])}

    def _word(self, concept: str) -> list[str]:
        """Word a concept by every template."""
        return [template.format(concept) for template in self.templates]

    def _check_concepts(self, rows: list[dict]) -> None:
        """Refuse rows with a concept that is not in the vocabulary."""
        for i, row in enumerate(rows):
            if unknown := sorted(set(filter(None, row["concepts"])) - set(self.vocabulary)):
                raise ValueError(
                    f"the concepts {unknown} of row {row.get('row_id', i)} are not among the "
                    f"{len(self.vocabulary)} concepts of `vocabulary`. Add them, or pass vocabulary=None."
                )

    def _pack(self, texts: list[str], index: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tokenize and pack the texts, and let the indices name them by their number in the rows."""
        tokenizer = self.processor.tokenizer
        # A batch without words gets one meaningless text, so that every process runs the text tower.
        tokens = [[tokenizer.bos_token_id, tokenizer.eos_token_id]]
        if texts:
            tokens = self.processor(text=texts, truncation=True)["input_ids"]
        input_ids, text_ids, order = pack_texts(tokens, tokenizer.pad_token_id)
        number = order.argsort()
        indices = {f"{name}_index": number[places.clamp(min=0)] for name, places in index.items()}
        indices["negative_index"][index["negative"] < 0] = NO_TEXT
        return {"input_ids": input_ids, "text_ids": text_ids} | indices

    def _collect_images(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Prepare images with their regions, and crops with theirs."""
        # Quads if every row with regions has them, else boxes.
        with_boxes = [row for row in rows if row["boxes"]]
        form = "quads" if with_boxes and all(row.get("quads") for row in with_boxes) else "boxes"
        images, regions = [row["image"] for row in rows], [row[form] if row["boxes"] else [] for row in rows]
        batch = self._prepare(images, form, regions, self.max_regions)
        if not any("crops" in row for row in rows):
            return batch
        places = [(i, r) for i, row in enumerate(rows) for r in row.get("crops", [])]
        index = torch.tensor([i * self.max_regions + r for i, r in places], dtype=torch.long)
        if not places:
            empty = {
                "crop_values": batch["pixel_values"][:0],
                f"crop_{form}": batch[f"region_{form}"][:0, :1],
            }
            return batch | empty | {"crop_index": index}
        crops, regions = zip(*(crop_region(images[i], regions[i][r]) for i, r in places), strict=True)
        cropped = self._prepare(list(crops), form, [[region] for region in regions], 1)
        batch |= {"crop_values": cropped["pixel_values"], f"crop_{form}": cropped[f"region_{form}"]}
        return batch | {"crop_index": index}

    def _prepare(self, images: list, form: str, regions: list, max_regions: int) -> dict[str, torch.Tensor]:
        options = {form: regions, "max_regions": max_regions, "return_tensors": "pt"}
        return dict(self.processor(images=images, **options))


def crop_region(image, region: list) -> tuple:
    """Cut a region out of its image, at whole pixels.

    Args:
        image: a PIL image.
        region: a box, xyxy, or four corners, in pixels of the image.

    Returns:
        the crop, and the region in pixels of the crop.

    Example:
        >>> from PIL import Image
        >>> crop, box = crop_region(Image.new("RGB", (20, 10)), [2.5, 1.0, 30.0, 4.0])
        >>> crop.size, box
        ((18, 3), [0.5, 0.0, 28.0, 3.0])
    """
    points = region if isinstance(region[0], (list, tuple)) else [region[:2], region[2:]]
    xs, ys = zip(*points, strict=True)
    left, top = max(math.floor(min(xs)), 0), max(math.floor(min(ys)), 0)
    right, bottom = min(math.ceil(max(xs)), image.width), min(math.ceil(max(ys)), image.height)
    moved = [[x - left, y - top] for x, y in points]
    return image.crop((left, top, right, bottom)), moved if points is region else [*moved[0], *moved[1]]


def hash_words(words: str) -> int:
    """Give words a number that is the same on every process and in every run, at least 0.

    Example:
        >>> hash_words("a ship") == hash_words("a ship") != hash_words("two ships")
        True
    """
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1


@cache
def hash_broader(concept: str | None) -> torch.Tensor:
    """Return the ids of the concepts that are broader than this one, (K,), -100 for padding.

    Example:
        >>> (hash_broader("bus") == hash_words("vehicle")).sum()
        tensor(1)
    """
    names = load_vocabulary().get(concept or "", ())
    return torch.tensor([*map(hash_words, names), *[NO_TEXT] * (LEVELS - len(names))])
