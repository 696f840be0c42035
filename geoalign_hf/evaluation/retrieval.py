"""Retrieval: images and their captions, regions and their phrases, each found among the others.

What enters are a model and rows; what leaves are recalls with their protocol. Places are exact: every query
is compared with every candidate, a chunk of queries at a time, and ties count against us.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from ..data.row_images import RowImages
from ..data.views import resolve_context
from ..embedding.embedder import Embedder
from .metrics.scores import RECALL_AT, rank_own, score_retrieval
from .phrases import list_negatives
from .results import save_arrays

# How captions are treated, and the words before them. `all`: every caption of every image is kept, as in
# CLIP_benchmark, RemoteCLIP and RS5M. `unique`: equal captions and equal images count once, and a caption
# that several images share accepts any of them, as in SkyScript and FarSLIP. The two are not comparable.
CAPTION_PREFIXES = {"all": "", "unique": "a satellite image. "}
CHUNK = 2**24  # scores held at once


def retrieve_captions(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    captions: str = "all",
    prefix: str | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Find the captions of images among all captions, and the images of captions among all images.

    An image has found its captions if any one of them is among the first k.

    Args:
        model: ours, one wrapped by an adapter, or a stock CLIP.
        processor: of that model.
        rows: a dataset with `image` and `captions`; rows without captions are left out.
        captions: `all` or `unique`, see `CAPTION_PREFIXES`.
        prefix: words before every caption; None takes those of the protocol.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_retrieval` for `image_to_text` and `text_to_image`, with `unique` also recalls at
        100; the counts `num_images` and `num_captions`; and `protocol`.

    Raises:
        ValueError: if `captions` is unknown, or no row has captions.
    """
    if captions not in CAPTION_PREFIXES:
        raise ValueError(f"captions is {captions!r}; it must be one of {tuple(CAPTION_PREFIXES)}.")
    prefix = CAPTION_PREFIXES[captions] if prefix is None else prefix
    captions_of_rows = list(rows["captions"])  # without their images
    kept = [i for i, texts in enumerate(captions_of_rows) if texts]
    if not kept:
        raise ValueError("no row has captions. Give rows with at least one caption.")
    images = RowImages(rows, kept)
    pairs = [(place, prefix + text) for place, i in enumerate(kept) for text in captions_of_rows[i]]
    if captions == "unique":
        copies = find_copies(images)
        pairs = sorted({(copies[place], text) for place, text in pairs})
        places = {first: place for place, first in enumerate(sorted(set(copies)))}
        pairs = [(places[first], text) for first, text in pairs]
        images = RowImages(rows, [kept[first] for first in places])
        texts = sorted({text for _, text in pairs})
        text_ids = {text: i for i, text in enumerate(texts)}
        pairs = [(place, text_ids[text]) for place, text in pairs]
    else:
        texts = [text for _, text in pairs]
        pairs = [(place, i) for i, (place, _) in enumerate(pairs)]
    embedder = Embedder(model, processor, image_size, batch_size)
    image_embeds, text_embeds = embedder.embed_images(images), embedder.embed_text(texts)
    save_arrays(embeds_path, images=image_embeds, texts=text_embeds, pairs=np.array(pairs))
    own_texts, own_images = [[] for _ in images], [[] for _ in texts]
    for image, text in pairs:
        own_texts[image].append(text)
        own_images[text].append(image)
    ranks = {
        "image_to_text": rank_by_chunks(image_embeds, text_embeds, own_texts),
        "text_to_image": rank_by_chunks(text_embeds, image_embeds, own_images),
    }
    protocol = {
        "task": "retrieval of images and captions",
        "captions": captions,
        "prefix": prefix,
        "ties": "against us",
        "num_rows_without_captions": len(rows) - len(kept),
    }
    scores = score_retrieval(ranks, RECALL_AT if captions == "all" else (*RECALL_AT, 100))
    scores |= {"num_images": len(images), "num_captions": len(texts)}
    return scores | {"protocol": protocol | embedder.describe()}


def retrieve_phrases(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    region_source: str = "image",
    context: float | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Find the phrases of regions and the regions of phrases, inside each image and over the split.

    Equal phrases are one; a phrase that several regions share accepts any of them.

    Args:
        model: ours, one wrapped by an adapter, or with `region_source="crop"` a stock CLIP.
        processor: of that model.
        rows: a dataset of rows.
        region_source: what is encoded, see `Embedder.embed_regions`.
        context: side of windows and crops as a multiple of the longer side of the box; None takes the usual.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images or windows per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        `region_to_phrase_in_image`, the share of regions whose phrase comes first among those of its image;
        `phrase_to_region_in_image`, the other way; where rows have hard negatives,
        `region_to_phrase_or_negative_in_image`, with the region's own among the candidates; `chance_...` of
        the first two; and over the split the scores of `score_retrieval` for `region_to_phrase` and
        `phrase_to_region`. Counts: `num_regions`, `num_phrases` (different ones), `num_images_in_image`: only
        images with two or more different phrases ask something. And `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, or there are no regions.

    Source:
        Variants of what others call Acc@1 without a definition; none is the one of RRSIS-HR.
    """
    context = resolve_context(region_source, context)
    phrases = [phrase for of_row in rows["phrases"] for phrase in of_row]
    if not phrases:
        raise ValueError("there are no regions to score. Give rows that have boxes.")
    has_negatives = "hard_negatives" in rows.column_names
    negatives = list_negatives(rows, "hard_negatives") if has_negatives else [[]] * len(phrases)
    embedder = Embedder(model, processor, image_size, batch_size)
    region_embeds = embedder.embed_regions(rows, region_source, context)
    texts = sorted({*phrases, *(text for of_one in negatives for text in of_one)})
    text_embeds = embedder.embed_text(texts)
    ids = {text: i for i, text in enumerate(texts)}
    save_arrays(
        embeds_path,
        regions=region_embeds,
        texts=text_embeds,
        text_ids=np.array([ids[phrase] for phrase in phrases]),
        images=np.array([i for i, boxes in enumerate(rows["boxes"]) for _ in boxes]),
    )
    scores = _score_in_images(rows["phrases"], negatives, region_embeds, text_embeds, ids)

    unique = sorted(set(phrases))
    places = {phrase: i for i, phrase in enumerate(unique)}
    own_phrases, own_regions = [[places[phrase]] for phrase in phrases], [[] for _ in unique]
    for region, (place,) in enumerate(own_phrases):
        own_regions[place].append(region)
    phrase_embeds = text_embeds[[ids[phrase] for phrase in unique]]
    ranks = {
        "region_to_phrase": rank_by_chunks(region_embeds, phrase_embeds, own_phrases),
        "phrase_to_region": rank_by_chunks(phrase_embeds, region_embeds, own_regions),
    }
    protocol = {
        "task": "retrieval of regions and phrases",
        "region_source": region_source,
        "context": context,
        "ties": "against us",
        "num_images": len(rows),
    }
    scores |= score_retrieval(ranks) | {"num_regions": len(phrases), "num_phrases": len(unique)}
    return scores | {"protocol": protocol | embedder.describe()}


def _score_in_images(phrases_of_rows, negatives, region_embeds, text_embeds, ids) -> dict:
    """Score the two directions, and the one among hard negatives too, inside each image."""
    hits = {"region_to_phrase": [], "phrase_to_region": [], "region_to_phrase_or_negative": []}
    chances = {"region_to_phrase": [], "phrase_to_region": []}
    start = num_images = 0
    for phrases in phrases_of_rows:
        regions, start = range(start, start + len(phrases)), start + len(phrases)
        unique = sorted(set(phrases))
        if len(unique) < 2:
            continue
        num_images += 1
        cosines = (region_embeds[list(regions)] @ text_embeds[[ids[text] for text in unique]].T).numpy()
        is_own = np.array([[phrase == text for text in unique] for phrase in phrases])
        hits["region_to_phrase"] += (rank_own(cosines, is_own) == 1).tolist()
        hits["phrase_to_region"] += (rank_own(cosines.T, is_own.T) == 1).tolist()
        chances["region_to_phrase"] += is_own.mean(axis=1).tolist()
        chances["phrase_to_region"] += is_own.mean(axis=0).tolist()
        for region, phrase in zip(regions, phrases, strict=True):
            if negatives[region]:
                candidates = sorted({*unique, *negatives[region]})
                cosine = text_embeds[[ids[text] for text in candidates]] @ region_embeds[region]
                is_phrase = np.array([text == phrase for text in candidates])
                rank = rank_own(cosine.numpy()[None], is_phrase[None])
                hits["region_to_phrase_or_negative"].append(bool(rank[0] == 1))
    scores = {f"{name}_in_image": float(np.mean(right)) for name, right in hits.items() if right}
    scores |= {f"chance_{name}_in_image": float(np.mean(odds)) for name, odds in chances.items() if odds}
    return scores | {"num_images_in_image": num_images}


def rank_by_chunks(
    query_embeds: torch.Tensor, candidate_embeds: torch.Tensor, own: list[list[int]], chunk: int = CHUNK
) -> np.ndarray:
    """Give the place of each query's best own candidate, as `rank_own` does, whatever their number.

    Args:
        query_embeds: (Q, D), unit vectors.
        candidate_embeds: (N, D), unit vectors.
        own: for each query the indices of the candidates that belong to it.
        chunk: scores held at once: memory is some ten bytes for each, and no longer grows with Q.

    Returns:
        (Q,), 1 is the first place.

    Example:
        >>> rank_by_chunks(torch.eye(2), torch.tensor([[0.6, 0.8], [0.8, 0.6]]), [[0], [0]]).tolist()
        [2, 1]
    """
    ranks, num_queries = [], max(1, chunk // max(len(candidate_embeds), 1))
    for start in range(0, len(query_embeds), num_queries):
        scores = query_embeds[start : start + num_queries] @ candidate_embeds.T  # (q, N)
        is_own = np.zeros(scores.shape, dtype=bool)
        for i, candidates in enumerate(own[start : start + num_queries]):
            is_own[i, candidates] = True
        ranks.append(rank_own(scores.numpy(), is_own))
    return np.concatenate(ranks)


def find_copies(images: Sequence) -> list[int]:
    """Give for each image the index of the first one with the same pixels.

    Args:
        images: PIL images.
    """
    firsts = {}
    digests = [hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()) for image in images]
    return [firsts.setdefault(digest.digest(), i) for i, digest in enumerate(digests)]
