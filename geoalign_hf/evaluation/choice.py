"""Multiple choice: which of several statements fits an image?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..embedding.embedder import Embedder
from .evaluator import Evaluator
from .metrics.choice import score_choices


@dataclass(eq=False, repr=False)
class StatementChoiceEvaluator(Evaluator):
    """Answer questions whose options are statements: the statement closest to the image is the answer.

    The text of the question is not read, so every option must be a complete statement.
    The result holds the scores of `score_choices`.

    Args:
        questions: dictionaries with `image` (PIL image or path), `options` (texts), `answer` (index of the
            correct option) and `subject` (what the question is about).
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: if there are no questions, or one lacks a correct option.

    Source:
        CHOICE, https://arxiv.org/abs/2411.18145; its image-level questions, options word for word.
    """

    name, primary_metric = "choice", "accuracy"
    task = "multiple choice over statements"

    questions: Sequence[dict]

    def __post_init__(self):
        if not self.questions:
            raise ValueError("Expected at least one question; found none.")
        for i, question in enumerate(self.questions):
            if missing := [key for key in ("image", "options", "answer", "subject") if key not in question]:
                raise ValueError(f"questions[{i}] lacks {missing}; it has {sorted(question)}. Add them.")
            if isinstance(question["options"], str):
                raise ValueError(f"questions[{i}]['options'] is a string; expected a list of statements.")

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        image_embeds = embedder.embed_images([question["image"] for question in self.questions], "questions")
        options = [list(question["options"]) for question in self.questions]
        text_embeds = embedder.embed_text([text for texts in options for text in texts])
        question_ids = np.array([i for i, texts in enumerate(options) for _ in texts], dtype=int)
        answers = [question["answer"] for question in self.questions]
        self._save(
            images=image_embeds, texts=text_embeds, question_ids=question_ids, answers=np.array(answers)
        )
        cosines = (image_embeds[question_ids] * text_embeds).sum(dim=-1).numpy()
        per_question = np.split(cosines, np.cumsum([len(texts) for texts in options])[:-1])
        return score_choices(per_question, answers, [question["subject"] for question in self.questions]), {}
