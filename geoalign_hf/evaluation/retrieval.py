"""Retrieval: find the captions of images and the phrases of regions, and the reverse.

Ranks are exact: every query is compared with every candidate, one block of queries at a time. Ties count
against the model.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from datasets import Dataset

from ..data.row_images import RowImages
from ..embedding.embedder import Embedder
from .evaluator import Evaluator, RegionEvaluator
from .hard_negatives import list_negatives
from .metrics.retrieval import RECALL_AT, rank_own, score_retrieval

# How repeated captions are treated, and the words before every caption. `all`: every caption of every image
# is kept, as in CLIP_benchmark, RemoteCLIP and RS5M. `unique`: equal captions and equal images count once,
# and a caption that several images share accepts any of them, as in SkyScript and FarSLIP. Scores of the two
# protocols cannot be compared.
CAPTION_PREFIXES = {"all": "", "unique": "a satellite image. "}
BLOCK_SIZE = 2**20  # scores held at once; this many stay in the cache of the CPU


@dataclass(eq=False, repr=False)
class CaptionRetrievalEvaluator(Evaluator):
    """Find the captions of images among all captions, and the images of captions among all images.

    An image has found its captions if any one of them is among the first k. The result holds the scores of
    `score_retrieval` for `image_to_text` and `text_to_image` (with "unique" also recalls at 100), and the
    counts `num_images` and `num_captions`.

    Args:
        rows: dataset with `image` and `captions`; rows without captions are skipped.
        captions: "all" or "unique", see `CAPTION_PREFIXES`.
        prefix: words before every caption. None takes those of the protocol.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: if `captions` is unknown, or no row has captions.
    """

    name, primary_metric = "caption_retrieval", "mean_recall"
    task = "retrieval of images and captions"

    rows: Dataset
    captions: str = "all"
    _: KW_ONLY
    prefix: str | None = None

    def __post_init__(self):
        if self.captions not in CAPTION_PREFIXES:
            raise ValueError(f"captions is {self.captions!r}; it must be one of {tuple(CAPTION_PREFIXES)}.")
        if missing := {"image", "captions"} - set(self.rows.column_names):
            raise ValueError(
                f"The dataset lacks the columns {sorted(missing)}; it has {self.rows.column_names}. "
                "Rename its columns."
            )
        if not any(self.rows["captions"]):
            raise ValueError(
                f"Expected captions; none of the {len(self.rows)} rows has one. Give rows with captions."
            )
        self.prefix = CAPTION_PREFIXES[self.captions] if self.prefix is None else self.prefix

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        captions_of_rows = list(self.rows["captions"])
        row_ids = [i for i, captions in enumerate(captions_of_rows) if captions]
        num_skipped = len(self.rows) - len(row_ids)
        captions = [[self.prefix + text for text in captions_of_rows[i]] for i in row_ids]
        if self.captions == "unique":
            copies = find_copies(RowImages(self.rows, row_ids))
            row_ids, texts, pairs = _merge_copies(row_ids, copies, captions)
        else:
            texts = [text for of_image in captions for text in of_image]
            image_ids = [image for image, of_image in enumerate(captions) for _ in of_image]
            pairs = [(image, text) for text, image in enumerate(image_ids)]
        images = RowImages(self.rows, row_ids)
        image_embeds, text_embeds = embedder.embed_images(images), embedder.embed_text(texts)
        self._save(images=image_embeds, texts=text_embeds, pairs=np.array(pairs))
        own_texts, own_images = [[] for _ in images], [[] for _ in texts]
        for image, text in pairs:
            own_texts[image].append(text)
            own_images[text].append(image)
        ranks = {
            "image_to_text": rank_in_blocks(image_embeds, text_embeds, own_texts),
            "text_to_image": rank_in_blocks(text_embeds, image_embeds, own_images),
        }
        scores = score_retrieval(ranks, RECALL_AT if self.captions == "all" else (*RECALL_AT, 100))
        scores |= {"num_images": len(images), "num_captions": len(texts)}
        return scores, {
            "captions": self.captions,
            "prefix": self.prefix,
            "ties": "count against the model",
            "num_rows_without_captions": num_skipped,
        }


def _merge_copies(
    row_ids: list[int], copies: list[int], captions: list[list[str]]
) -> tuple[list[int], list[str], list[tuple[int, int]]]:
    """Keep one of equal images and one of equal captions.

    Args:
        row_ids: N row indices.
        copies: for each of the N images the index of the first equal one.
        captions: for each of the N images its captions.

    Returns:
        The row indices of the images that are kept, the different texts, and pairs (image, text) of indices
        into the two.
    """
    kept = sorted(set(copies))
    image_ids = {first: i for i, first in enumerate(kept)}
    texts = sorted({text for of_image in captions for text in of_image})
    text_ids = {text: i for i, text in enumerate(texts)}
    pairs = {
        (image_ids[first], text_ids[text])
        for first, of_image in zip(copies, captions, strict=True)
        for text in of_image
    }
    return [row_ids[first] for first in kept], texts, sorted(pairs)


@dataclass(eq=False, repr=False)
class PhraseRetrievalEvaluator(RegionEvaluator):
    """Find the phrases of regions and the regions of phrases, inside each image and over all rows.

    Equal phrases count once; a phrase that several regions share accepts any of them. Scores:

    - `region_to_phrase_in_image`: fraction of regions whose phrase ranks first among those of its image;
      `phrase_to_region_in_image` is the reverse. `chance_...` is what guessing would give.
    - `region_to_phrase_or_negative_in_image`, where rows have hard negatives: the same with the region's own
      hard negatives among the candidates.
    - Over all rows, the scores of `score_retrieval` for `region_to_phrase` and `phrase_to_region`.
    - Counts: `num_regions`, `num_phrases` (different ones), and `num_images_in_image`, the images with at
      least two different phrases; only these count for the scores inside images.

    A phrase that the rows mark as `ambiguous` may also mean another region of its image. It does not count
    for the scores inside images, neither as a query nor as a candidate.

    Args:
        rows: dataset of rows.
        region_source: source of a region's embedding, see `RegionEvaluator`.
        context: side of windows and crops, see `RegionEvaluator`.
        views: several contexts, see `RegionEvaluator`.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Source:
        Variants of what others call Acc@1 without a definition; none of them is that of RRSIS-HR.
    """

    name, primary_metric = "phrase_retrieval", "mean_recall"
    task = "retrieval of regions and phrases"

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        phrases = [phrase for of_row in self.rows["phrases"] for phrase in of_row]
        negatives = list_negatives(self.rows)
        region_embeds = self._embed_regions(embedder)
        texts = sorted({*phrases, *(text for of_one in negatives for text in of_one)})
        text_embeds = embedder.embed_text(texts)
        ids = {text: i for i, text in enumerate(texts)}
        self._save(
            regions=region_embeds,
            texts=text_embeds,
            text_ids=np.array([ids[phrase] for phrase in phrases]),
            images=np.array([i for i, boxes in enumerate(self.rows["boxes"]) for _ in boxes]),
        )
        has_flags = "ambiguous" in self.rows.column_names
        flags = self.rows["ambiguous"] if has_flags else [[]] * len(self.rows)
        scores = _score_in_images(self.rows["phrases"], flags, negatives, region_embeds, text_embeds, ids)

        unique = sorted(set(phrases))
        positions = {phrase: i for i, phrase in enumerate(unique)}
        own_phrases, own_regions = [[positions[phrase]] for phrase in phrases], [[] for _ in unique]
        for region, (position,) in enumerate(own_phrases):
            own_regions[position].append(region)
        phrase_embeds = text_embeds[[ids[phrase] for phrase in unique]]
        ranks = {
            "region_to_phrase": rank_in_blocks(region_embeds, phrase_embeds, own_phrases),
            "phrase_to_region": rank_in_blocks(phrase_embeds, region_embeds, own_regions),
        }
        scores |= score_retrieval(ranks) | {"num_regions": len(phrases), "num_phrases": len(unique)}
        return scores, self._describe_regions(embedder) | {"ties": "count against the model"}


def _score_in_images(phrases_of_rows, flags_of_rows, negatives, region_embeds, text_embeds, ids) -> dict:
    """Score both directions inside each image, and the regions among hard negatives as well."""
    hits = {"region_to_phrase": [], "phrase_to_region": [], "region_to_phrase_or_negative": []}
    chances = {"region_to_phrase": [], "phrase_to_region": []}
    start = num_images = 0
    for phrases, flags in zip(phrases_of_rows, flags_of_rows, strict=True):
        regions, start = range(start, start + len(phrases)), start + len(phrases)
        clear = [r for r in range(len(phrases)) if not (flags and flags[r])]
        unique = sorted({phrases[r] for r in clear})
        if len(unique) < 2:
            continue
        num_images += 1
        cosines = (region_embeds[list(regions)] @ text_embeds[[ids[text] for text in unique]].T).numpy()
        own_phrases = [[unique.index(phrases[r])] for r in clear]
        own_regions = [[r for r, phrase in enumerate(phrases) if phrase == text] for text in unique]
        hits["region_to_phrase"] += (rank_own(cosines[clear], own_phrases) == 1).tolist()
        hits["phrase_to_region"] += (rank_own(cosines.T, own_regions) == 1).tolist()
        chances["region_to_phrase"] += [1 / len(unique)] * len(clear)
        chances["phrase_to_region"] += [len(own) / len(phrases) for own in own_regions]
        for region, phrase in ((regions[r], phrases[r]) for r in clear):
            if negatives[region]:
                candidates = sorted({*unique, *negatives[region]})
                cosine = text_embeds[[ids[text] for text in candidates]] @ region_embeds[region]
                rank = rank_own(cosine.numpy()[None], [[candidates.index(phrase)]])
                hits["region_to_phrase_or_negative"].append(bool(rank[0] == 1))
    scores = {f"{name}_in_image": float(np.mean(right)) for name, right in hits.items() if right}
    scores |= {f"chance_{name}_in_image": float(np.mean(odds)) for name, odds in chances.items() if odds}
    return scores | {"num_images_in_image": num_images}


def rank_in_blocks(
    query_embeds: torch.Tensor,
    candidate_embeds: torch.Tensor,
    own: list[list[int]],
    block_size: int = BLOCK_SIZE,
) -> np.ndarray:
    """Compute the rank of each query's best own candidate as `rank_own` does, in bounded memory.

    Args:
        query_embeds: (Q, D), unit vectors.
        candidate_embeds: (N, D), unit vectors.
        own: for each query the indices of the candidates that belong to it.
        block_size: number of scores held at once. Memory is about five bytes for each and does not grow with
            Q.

    Returns:
        (Q,), 1 is the first rank.

    Example:
        >>> rank_in_blocks(torch.eye(2), torch.tensor([[0.6, 0.8], [0.8, 0.6]]), [[0], [0]]).tolist()
        [2, 1]
    """
    ranks = np.empty(len(query_embeds), dtype=np.int64)
    num_queries = max(1, block_size // max(len(candidate_embeds), 1))
    for start in range(0, len(query_embeds), num_queries):
        block = slice(start, start + num_queries)
        scores = query_embeds[block] @ candidate_embeds.T  # (q, N)
        ranks[block] = rank_own(scores.numpy(), own[block])
    return ranks


def find_copies(images: Iterable) -> list[int]:
    """Find equal images.

    Args:
        images: N PIL images.

    Returns:
        N indices, for each image that of the first one with the same size and pixels.
    """
    firsts = {}
    digests = [hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()) for image in images]
    return [firsts.setdefault(digest.digest(), i) for i, digest in enumerate(digests)]
