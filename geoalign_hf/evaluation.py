"""A model and data to a dictionary of scores. Every result names the protocol that it was made by.

Here are the tasks that choose among words: concepts of regions and scenes, phrases, statements; and the
guards that tell whether training has broken something else. Retrieval and maps have files of their own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from .concepts import choose_templates, spell_concept
from .embedding import Embedder, choose_context
from .files import write_json
from .metrics import (
    count_confusions,
    measure_coherence,
    measure_drift,
    rank_concepts,
    score_choices,
    score_concepts,
    score_hard_negatives,
    score_regions,
)
from .model.processing_geoalign_clip import CONCEPT_TEMPLATES
from .rows import list_concepts


def classify_regions(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    concepts: list[str] | None = None,
    templates: str | tuple[str, ...] = CONCEPT_TEMPLATES,
    region_source: str = "image",
    context: float | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Name the concept of every ground-truth box and score it.

    Args:
        model: ours, one wrapped by an adapter, or with `region_source="crop"` a stock CLIP.
        processor: of that model.
        rows: a dataset of rows.
        concepts: to choose from; None takes those that occur in the rows.
        templates: sentences that word a concept, or the name of a set of them.
        region_source: what is encoded, see `Embedder.embed_regions`.
        context: side of windows and crops as a multiple of the longer side of the box; None takes the usual.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images or windows per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_regions`, by size too; `confusion`, counts with a row per right concept and a
        column per answer, in the order of `protocol["concepts"]`; and `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, `context` is below 1, there are no regions, or a row has a
            concept that is not among `concepts`.
    """
    context, templates = choose_context(region_source, context), choose_templates(templates)
    concepts = list_concepts(rows) if concepts is None else concepts
    if unknown := sorted(set(list_concepts(rows)) - set(concepts)):
        raise ValueError(f"the rows hold the concepts {unknown}, which are not among {concepts}.")
    embedder = Embedder(model, processor, image_size, batch_size)
    concept_embeds = embedder.embed_concepts(concepts, templates)
    region_embeds = embedder.embed_regions(rows, region_source, context)
    references = np.array([concepts.index(name) for names in rows["concepts"] for name in names], dtype=int)
    areas = np.array([(x1 - x0) * (y1 - y0) for boxes in rows["boxes"] for x0, y0, x1, y1 in boxes])
    save_arrays(
        embeds_path, regions=region_embeds, concepts=concept_embeds, references=references, areas=areas
    )
    predictions = rank_concepts((region_embeds @ concept_embeds.T).numpy())
    protocol = {
        "task": "region classification from ground-truth boxes",
        "region_source": region_source,
        "context": context,
        "templates": list(templates),
        "concepts": list(concepts),
        "num_images": len(rows),
    }
    scores = score_regions(predictions, references, concepts, areas)
    scores["confusion"] = count_confusions(predictions, references, len(concepts)).tolist()
    return scores | {"protocol": protocol | embedder.describe()}


def classify_scenes(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    images: Sequence,
    names: Sequence[str],
    concepts: list[str] | None = None,
    templates: str | tuple[str, ...] = CONCEPT_TEMPLATES,
    renamed: dict[str, str] | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Name the concept of every image and score it, without having been trained on it.

    Args:
        model: ours, one wrapped by an adapter, or a stock CLIP.
        processor: of that model.
        images: PIL images or paths; also a column of a dataset.
        names: of each image the name of its concept, as the data set writes it.
        concepts: names to choose from; None takes those that occur.
        templates: sentences that word a concept, or the name of a set of them.
        renamed: names of the data set that are to be worded otherwise; the others are worded as
            `spell_concept` says.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_concepts`; `confusion` as of `classify_regions`; and `protocol`.

    Raises:
        ValueError: if images and names differ in number, or a name is not among `concepts`.
    """
    if len(images) != len(names):
        raise ValueError(f"there are {len(images)} images, but {len(names)} names. Give one name per image.")
    templates, renamed = choose_templates(templates), renamed or {}
    concepts = sorted(set(names)) if concepts is None else concepts
    if unknown := sorted(set(names) - set(concepts)):
        raise ValueError(f"the images have the concepts {unknown}, which are not among {concepts}.")
    words = [renamed.get(name, spell_concept(name)) for name in concepts]
    embedder = Embedder(model, processor, image_size, batch_size)
    concept_embeds = embedder.embed_concepts(words, templates)
    image_embeds = embedder.embed_images(images, "scenes")
    references = np.array([concepts.index(name) for name in names], dtype=int)
    save_arrays(embeds_path, images=image_embeds, concepts=concept_embeds, references=references)
    predictions = rank_concepts((image_embeds @ concept_embeds.T).numpy())
    protocol = {
        "task": "zero-shot scene classification",
        "templates": list(templates),
        "concepts": words,
        "renamed": {name: word for name, word in zip(concepts, words, strict=True) if name != word},
    }
    scores = score_concepts(predictions, references, words)
    scores["confusion"] = count_confusions(predictions, references, len(words)).tolist()
    return scores | {"protocol": protocol | embedder.describe()}


def choose_phrases(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    region_source: str = "image",
    context: float | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Tell the phrase of every region from its hard negatives.

    Args:
        model: ours, one wrapped by an adapter, or with `region_source="crop"` a stock CLIP.
        processor: of that model.
        rows: a dataset of rows with `hard_negatives`, and `negative_kinds` if it is known what they change.
        region_source: what is encoded, see `Embedder.embed_regions`.
        context: side of windows and crops as a multiple of the longer side of the box; None takes the usual.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images or windows per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_hard_negatives`; `blind_accuracy` and `blind_per_kind`, what the same texts score
        against the mean of all regions, so what can be told from the words alone; and `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, or no region has a hard negative.
    """
    context = choose_context(region_source, context)
    embedder = Embedder(model, processor, image_size, batch_size)
    phrases = [phrase for of_row in rows["phrases"] for phrase in of_row]
    negatives = list_negatives(rows, "hard_negatives")
    kinds = list_negatives(rows, "negative_kinds") if "negative_kinds" in rows.column_names else None
    if kinds is not None:  # of rows without kinds
        kinds = [of_one or ["unknown"] * len(texts) for of_one, texts in zip(kinds, negatives, strict=True)]
    region_embeds = embedder.embed_regions(rows, region_source, context)
    texts = [*phrases, *(text for of_one in negatives for text in of_one)]
    text_embeds = embedder.embed_texts(texts) if texts else region_embeds
    owners = [*range(len(phrases)), *(i for i, of_one in enumerate(negatives) for _ in of_one)]
    save_arrays(
        embeds_path,
        regions=region_embeds,
        texts=text_embeds,
        owners=np.array(owners),
        phrases=np.array(texts),
    )
    ends = len(phrases) + np.cumsum([len(of_one) for of_one in negatives])

    def score(embeds: torch.Tensor) -> dict:
        cosines = (embeds[owners] * text_embeds).sum(dim=-1).numpy()
        against = np.split(cosines, [len(phrases), *ends[:-1]])[1:] if len(phrases) else []
        return score_hard_negatives(cosines[: len(phrases)], against, kinds)

    scores = score(region_embeds)
    mean_embed = torch.nn.functional.normalize(region_embeds.mean(dim=0, keepdim=True), dim=-1)
    blind = score(mean_embed.expand_as(region_embeds))
    scores |= {"blind_accuracy": blind["accuracy"], "blind_per_kind": blind["per_kind"]}
    protocol = {
        "task": "a phrase against its hard negatives",
        "region_source": region_source,
        "context": context,
        "num_images": len(rows),
    }
    return scores | {"protocol": protocol | embedder.describe()}


def list_negatives(rows, column: str) -> list[list[str]]:
    """Give each region's list in a column that may be empty for a whole row."""
    pairs = zip(rows["boxes"], rows[column], strict=True)
    return [texts for boxes, of_row in pairs for texts in (of_row or [[]] * len(boxes))]


def choose_statements(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    questions: Sequence[dict],
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Answer questions whose options are statements: the one nearest to the image.

    The question itself is not read, so it only means something where each option says the whole.

    Args:
        model: ours, one wrapped by an adapter, or a stock CLIP.
        processor: of that model.
        questions: dictionaries with `image` (PIL image or path), `options` (texts), `answer` (index of the
            right one) and `subject` (what it is about).
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_choices`, and `protocol`.

    Raises:
        ValueError: if there are no questions, or one has no right option.

    Source:
        CHOICE, https://arxiv.org/abs/2411.18145; its image-level questions, options word for word.
    """
    embedder = Embedder(model, processor, image_size, batch_size)
    image_embeds = embedder.embed_images([question["image"] for question in questions], "questions")
    options = [list(question["options"]) for question in questions]
    text_embeds = embedder.embed_texts([text for texts in options for text in texts])
    owners = [i for i, texts in enumerate(options) for _ in texts]
    answers = [question["answer"] for question in questions]
    save_arrays(
        embeds_path,
        images=image_embeds,
        texts=text_embeds,
        owners=np.array(owners),
        answers=np.array(answers),
    )
    cosines = (image_embeds[owners] * text_embeds).sum(dim=-1).numpy()
    of_each = np.split(cosines, np.cumsum([len(texts) for texts in options])[:-1]) if options else []
    scores = score_choices(of_each, answers, [question["subject"] for question in questions])
    return scores | {"protocol": {"task": "multiple choice over statements"} | embedder.describe()}


def guard_embeddings(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    images: Sequence,
    texts: Sequence[str] = (),
    start: torch.nn.Module | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
) -> dict:
    """Measure what training may break while the scores above rise.

    Args:
        model: ours, or one wrapped by an adapter.
        processor: of that model, and of `start`.
        images: PIL images or paths.
        texts: to embed as well.
        start: the model that training started from; None measures coherence alone.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.

    Returns:
        The numbers of `measure_coherence`, means over images; with `start` those of `measure_drift`, prefixed
        by `image_` and, with `texts`, `text_`; and `protocol`.

    Raises:
        ValueError: if there are no images, or the model has no dense map.
    """
    if len(images) == 0:
        raise ValueError("there are no images to measure. Give at least one.")
    embedder = Embedder(model, processor, image_size, batch_size)
    measured, counts = [], []
    for patch_embeds in embedder.embed_patches(images):
        measured.append(measure_coherence(patch_embeds.numpy()))
        counts.append(len(patch_embeds))
    scores = {
        name: float(np.average([numbers[name] for numbers in measured], weights=counts))
        for name in measured[0]
    }
    if start is not None:
        other = Embedder(start, processor, image_size, batch_size)
        pairs = {"image": (embedder.embed_images(images), other.embed_images(images))}
        if texts:
            pairs["text"] = (embedder.embed_texts(texts), other.embed_texts(texts))
        for kind, (embeds, start_embeds) in pairs.items():
            drift = measure_drift(embeds.numpy(), start_embeds.numpy())
            scores |= {f"{kind}_{name}": number for name, number in drift.items()}
    counts = {"num_images": len(images), "num_texts": len(texts)}
    return scores | counts | {"protocol": {"task": "guards of the embeddings"} | embedder.describe()}


def save_arrays(path: str | Path | None, **arrays) -> None:
    """Write to an npz file what scores were made of, so that anyone can make them again; None: nothing."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})


def write_metrics(path: str | Path, metrics: dict[str, dict]) -> None:
    """Write results to a JSON file.

    Args:
        path: of the file; its folder is made.
        metrics: scores by the name of the result, each with its `protocol`.

    Raises:
        ValueError: if a result has no protocol, or a number is none.
    """
    if bare := [name for name, scores in metrics.items() if "protocol" not in scores]:
        raise ValueError(
            f"the results {bare} have no protocol, and numbers mean nothing without. "
            "Write what the functions of geoalign_hf.evaluation give."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, metrics)
