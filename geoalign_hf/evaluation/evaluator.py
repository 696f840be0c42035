"""The base classes of all evaluators: data in, scores with their protocol out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..data.schema import check_columns
from ..data.views import resolve_context, resolve_contexts
from ..embedding.embedder import Embedder
from .results import save_arrays


@dataclass(eq=False, repr=False)
class Evaluator(ABC):
    """Score a model on one task.

    An evaluator is built from data and options. It is called with an `Embedder`, or with a model and its
    processor, and returns a dictionary of scores. The model may be ours, one wrapped by an adapter, or a
    stock CLIP. The data are checked when the evaluator is built, so that a mistake shows before a long
    training.

    A subclass sets the attributes below and defines `_evaluate`.

    Attributes:
        name: short name of the task, for logs and files.
        task: what is measured, in words, for the protocol.
        primary_metric: the score that stands for the others, for example to choose the best checkpoint.
        greater_is_better: whether a higher `primary_metric` is better.

    Args:
        arrays_path: `.npz` file to which the arrays behind the scores are written, so that anyone can compute
            the scores again. None writes nothing.

    Example:
        >>> class WidthEvaluator(Evaluator):
        ...     name, task, primary_metric = "width", "number of dimensions", "width"
        ...
        ...     def _evaluate(self, embedder):
        ...         return {"width": float(embedder.embed_text(["a ship"]).shape[1])}, {}
    """

    name: ClassVar[str]
    task: ClassVar[str]
    primary_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True

    _: KW_ONLY
    arrays_path: str | Path | None = None

    def __call__(self, model: Embedder | PreTrainedModel, processor: ProcessorMixin | None = None) -> dict:
        """Score a model.

        Args:
            model: an `Embedder`, which also sets image size and batch size; or a model.
            processor: processor of that model; not needed beside an `Embedder`.

        Returns:
            The scores. Those that are single numbers are floats, counts are integers. `protocol` says how the
            scores were measured: task, options, image size, counts and versions.
        """
        if isinstance(model, Embedder):
            embedder = model
        elif processor is not None:
            embedder = Embedder(model, processor)
        else:
            raise TypeError("Expected an Embedder, or a model and its processor; found a model alone.")
        num_cut_before = embedder.num_cut_texts
        scores, protocol = self._evaluate(embedder)
        shared = embedder.describe()
        shared["num_cut_texts"] -= num_cut_before
        return scores | {"protocol": {"task": self.task} | protocol | shared}

    @abstractmethod
    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        """Compute the scores, and the part of the protocol that belongs to this task."""

    def _save(self, **arrays: np.ndarray | torch.Tensor) -> None:
        if self.arrays_path is not None:
            save_arrays(self.arrays_path, **arrays)


@dataclass(eq=False, repr=False)
class RegionEvaluator(Evaluator):
    """Score a model on the ground-truth boxes of rows.

    Args:
        rows: dataset of rows.
        region_source: source of a region's embedding, see `Embedder.embed_regions`. None takes the one that
            the model was trained for.
        context: side of windows and crops, in multiples of the longer side of the box. None takes the one
            that the model was trained for, or a default for `region_source`.
        views: several contexts. A region's embedding is then the normalised mean over them.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: if the rows lack columns or have no regions, or an option has an impossible value.
    """

    rows: Dataset
    _: KW_ONLY
    region_source: str | None = None
    context: float | None = None
    views: Sequence[float] | None = None

    def __post_init__(self):
        check_columns(self.rows)
        for context in resolve_contexts(self.context, self.views):
            resolve_context(self.region_source or "window", context)
        if not any(self.rows["boxes"]):
            raise ValueError(
                f"Expected rows with regions; none of the {len(self.rows)} rows has a box. "
                "Give rows that have boxes."
            )

    def _embed_regions(self, embedder: Embedder) -> torch.Tensor:
        return embedder.embed_regions(self.rows, self.region_source, self.context, self.views)

    def _describe_regions(self, embedder: Embedder) -> dict:
        """Give the part of the protocol that all tasks on regions share."""
        source, contexts = embedder.resolve_view(self.region_source, self.context, self.views)
        return {
            "region_source": source,
            "context": contexts[0] if len(contexts) == 1 else contexts,
            "num_images": len(self.rows),
        }
