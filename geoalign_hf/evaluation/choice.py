"""Multiple choice: which of several statements fits an image?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from ..embedding.embedder import Embedder
from .metrics.scores import score_choices
from .results import save_arrays


def evaluate_statement_choice(
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
    text_embeds = embedder.embed_text([text for texts in options for text in texts])
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
