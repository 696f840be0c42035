"""Few-shot adaptation: learns new concepts from a few boxes each, and measures what is forgotten.

The base model was not trained on the new concepts. They are learned in closed form (prototypes, ridge
regression) or by LoRA. The scores are those on boxes of new concepts, of old concepts, and of both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..captioning.grammar import add_article
from ..data.augmentation import Augmentation
from ..data.schema import REGION_COLUMNS, build_rows
from ..evaluation.metrics.classification import rank_concepts, score_concepts
from ..losses.objective import LossWeights
from ..options import option
from .arguments import GeoAlignTrainingArguments
from .lora import AdapterConfig, adapt_model
from .trainer import GeoAlignTrainer


@dataclass(frozen=True)
class FewShotConfig:
    """Settings of few-shot adaptation. The help text of each field describes it.

    Raises:
        ValueError: if a number is too low, or `shots` is not a list of whole numbers.
    """

    _argument_group_name = "few-shot methods"

    shots: str = option(default="1,4,16", help="Numbers of boxes per new concept, separated by commas.")
    num_seeds: int = option(default=3, help="Number of draws of these boxes. Their seeds are 0, 1, ...")
    rehearsed: int = option(default=0, help="Number of boxes per old concept that LoRA is also trained on.")
    ridge: float = option(
        default=3.0, help="Strength of the ridge probe's regularization, multiplied by the number of shots."
    )
    num_steps: int = option(default=200, help="Number of training steps of LoRA.")
    learning_rate: float = option(default=5e-4, help="Peak learning rate of LoRA.")
    batch_size: int = option(default=12, help="Largest number of boxes per training step of LoRA.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(
        default=None, help="Mixed precision of the training of LoRA."
    )

    def __post_init__(self):
        self.list_shots()
        for name, low in (("num_seeds", 1), ("rehearsed", 0), ("num_steps", 1), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; it must be above 0.")

    def list_shots(self) -> list[int]:
        """Return the numbers in `shots` in ascending order.

        Raises:
            ValueError: if an entry is not a whole number of at least 1.
        """
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"shots is {self.shots!r}; it must be whole numbers from 1, such as 1,4,16.")
        return sorted({int(part) for part in parts})


def split_concepts(
    known: Sequence[str], concepts: Sequence[str] | None, old_concepts: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Split the concepts of a dataset into new ones, which are learned, and old ones, which are scored too.

    Args:
        known: all concepts of the dataset.
        concepts: the new concepts; None takes all that are not old.
        old_concepts: the old concepts; None takes all that are not new.

    Raises:
        ValueError: if a concept does not occur or is in both lists, or if no concept is new.

    Example:
        >>> split_concepts(["bridge", "road", "ship"], ["ship"], None)
        (['ship'], ['bridge', 'road'])
    """
    for names in (concepts or (), old_concepts or ()):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"the rows do not have the concepts {unknown}. Choose from {sorted(known)}.")
    if both := sorted(set(concepts or ()) & set(old_concepts or ())):
        raise ValueError(f"the concepts {both} are listed as new and as old. List each only once.")
    new = sorted(set(concepts or set(known) - set(old_concepts or ())))
    if not new:
        raise ValueError(f"all concepts, {sorted(known)}, are listed as old. Remove the new ones from them.")
    return new, sorted(set(known) - set(new) if old_concepts is None else old_concepts)


def split_rows(rows, test_fraction: float = 0.25, seed: int = 0) -> tuple:
    """Split rows at random into training rows and test rows, and return both."""
    order = np.random.default_rng(seed).permutation(len(rows))
    num_test = round(test_fraction * len(rows))
    return rows.select(sorted(order[num_test:])), rows.select(sorted(order[:num_test]))


def draw_shots(rows, concepts: Sequence[str], num_shots: int, seed: int):
    """Draw boxes of each concept at random.

    With the same seed, a smaller draw is part of a larger one. The draw of a concept does not depend on the
    other concepts.

    Args:
        rows: a dataset of rows.
        concepts: names of the concepts whose boxes are drawn.
        num_shots: number of boxes per concept.
        seed: seed of the draw.

    Returns:
        One row per box, in the order of `concepts`. It has the whole image, this box and its texts, but no
        other box, caption or description.

    Raises:
        ValueError: if a concept has fewer boxes than `num_shots`.
    """
    drawn = []
    for concept in concepts:
        candidates = [
            (i, r)
            for i, names in enumerate(rows["concepts"])
            for r, name in enumerate(names)
            if name == concept
        ]
        if len(candidates) < num_shots:
            raise ValueError(
                f"expected at least {num_shots} boxes of {concept!r}, but the rows have {len(candidates)}. "
                "Use fewer shots, or add boxes."
            )
        generator = np.random.default_rng([seed, *concept.encode()])
        for k in generator.permutation(len(candidates))[:num_shots]:
            i, r = candidates[k]
            row = rows[i]
            kept = {name: [row[name][r]] for name in REGION_COLUMNS if row.get(name)}
            drawn.append(kept | {name: row.get(name) for name in ("image", "source")})
    return build_rows(drawn)


def make_prototypes(embeds: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Average the unit vectors of each concept, and normalize the means.

    Args:
        embeds: (N, D), unit vectors.
        references: (N,), the concept of each, from 0 to C - 1; every concept occurs.

    Returns:
        (C, D).

    Source:
        Prototypical networks, https://arxiv.org/abs/1703.05175, with cosines.

    Example:
        >>> make_prototypes(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 1, 1])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    means = np.stack([embeds[references == c].mean(axis=0) for c in range(references.max() + 1)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def blend_with_texts(prototypes: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Normalize the sum of each prototype and the embedding of its concept's name.

    A region is more similar to other regions than to texts. So prototypes without the names attract regions
    of the old concepts, which are represented by their names alone.

    Args:
        prototypes: (C, D), unit vectors.
        texts: (C, D), unit vectors of the same concepts.

    Returns:
        (C, D).

    Example:
        >>> blend_with_texts(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).round(4).tolist()
        [[0.7071, 0.7071]]
    """
    sums = prototypes + texts
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def fit_ridge(embeds: np.ndarray, references: np.ndarray, ridge: float) -> np.ndarray:
    """Fit a linear map from embeddings to one-hot concepts: (X'X + ridge I)^-1 X'Y, in float64.

    Args:
        embeds: (N, D).
        references: (N,), the concept of each, from 0 to C - 1.
        ridge: the number that is added to the diagonal.

    Returns:
        (C, D); its products with an embedding are the scores of the concepts.

    Example:
        >>> fit_ridge(np.eye(2), np.array([0, 1]), ridge=1.0).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    X, Y = embeds.astype(np.float64), np.eye(references.max() + 1)[references]
    return np.linalg.solve(X.T @ X + ridge * np.eye(X.shape[1]), X.T @ Y).T


def adapt_by_lora(
    model: torch.nn.Module,
    processor,
    rows,
    concepts: Sequence[str],
    config: FewShotConfig,
    adapters: AdapterConfig,
    output_dir: str | Path,
    seed: int = 0,
    about: dict | None = None,
) -> torch.nn.Module:
    """Train LoRA adapters on a few boxes.

    Each box is contrasted with the concepts of all boxes. The names of all other concepts are its hard
    negatives, so that old concepts without boxes stay apart from it, too.

    Args:
        model: the base model, changed in place.
        processor: the processor of the base model.
        rows: the boxes, as `draw_shots` returns them.
        concepts: the names of all concepts, new and old.
        config: settings of the training.
        adapters: settings of the adapters.
        output_dir: folder of the run; the adapter is in its folder `final`.
        seed: seed of the order, the augmentation and the initial adapters.
        about: settings for the card, see `GeoAlignTrainer`.

    Returns:
        The adapted model.

    Raises:
        ValueError: if `adapters.lora` is empty.
    """
    if not adapters.lora:
        raise ValueError("lora is ''; it must name towers that get adapters: vision, text or vision,text.")
    negatives = {name: [add_article(other) for other in concepts if other != name] for name in concepts}
    texts = [
        {
            "phrases": [add_article(name) for name in row["concepts"]],
            "hard_negatives": [negatives[name] for name in row["concepts"]],
            "negative_kinds": [["concept"] * len(negatives[name]) for name in row["concepts"]],
        }
        for row in rows.remove_columns("image")
    ]
    rows = build_rows(row | columns for row, columns in zip(rows, texts, strict=True))
    batch_size = min(config.batch_size, len(rows))
    torch.manual_seed(seed)  # for the initial adapters
    model = adapt_model(model, adapters)
    off = dict.fromkeys(asdict(LossWeights()), 0.0)
    training = GeoAlignTrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=-(-config.num_steps // (len(rows) // batch_size)),
        per_device_train_batch_size=batch_size,
        learning_rate=config.learning_rate,
        max_negatives=len(concepts),
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        save_strategy="no",
        seed=seed,
    )
    weights = LossWeights(**off | {"concept": 1.0, "hard_negative": 1.0})
    # Training should see regions as the model will: in windows, or in wide views of the image.
    is_windowed = model.config.region_view == "window"
    augmentation = (
        Augmentation(whole_share=0.0) if is_windowed else Augmentation(min_context=1.5, max_context=8.0)
    )
    GeoAlignTrainer(
        model,
        training,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=weights,
        augmentation=augmentation,
        card_settings=about,
    ).train()
    return model


def score_few_shot(scores: np.ndarray, references: np.ndarray, concepts: list[str], num_new: int) -> dict:
    """Compute the accuracy on boxes of new concepts, of old concepts and of all concepts.

    Args:
        scores: (N, C), the score of every box for every concept, the new concepts first.
        references: (N,), the right concept of each box.
        concepts: the names of the C concepts.
        num_new: number of new concepts.

    Returns:
        `new_accuracy_micro` and `new_accuracy_macro`: boxes of new concepts, compared with the new names.
        With old concepts also the same for `all_...` (all boxes and names), `old_...` (boxes and names of old
        concepts: what the embeddings have forgotten) and `kept_...` (boxes of old concepts, all names: what
        the new names take away).

    Raises:
        ValueError: if no box is of a new concept, or old concepts have no boxes.
    """
    is_new = references < num_new
    parts = {"new": (is_new, slice(0, num_new))}
    if num_new < len(concepts):
        everything = slice(0, None)
        parts |= {"all": (is_new | True, everything), "old": (~is_new, slice(num_new, None))}
        parts |= {"kept": (~is_new, everything)}
    results = {}
    for part, (chosen, names) in parts.items():
        answers = rank_concepts(scores[chosen][:, names], k=1)
        first = names.start or 0
        result = score_concepts(answers, references[chosen] - first, concepts[names], "regions")
        results |= {f"{part}_accuracy_{kind}": result[f"top1_{kind}"] for kind in ("micro", "macro")}
    return results


def summarize_seeds(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each accuracy over seeds, and its sample standard deviation as `spread`.

    Example:
        >>> summarize_seeds([{"new_accuracy_micro": 0.0}, {"new_accuracy_micro": 1.0}])
        {'new_accuracy_micro': 0.5, 'new_spread_micro': 0.7071067811865476}
    """
    summary = {}
    for name in results[0]:
        values = [result[name] for result in results]
        summary[name] = float(np.mean(values))
        if len(values) > 1:
            summary[name.replace("accuracy", "spread")] = float(np.std(values, ddof=1))
    return summary


def write_table(metrics: dict[str, dict]) -> str:
    """Format results as a Markdown table, in percent: the mean ± the spread over seeds."""
    numbers = [name for name in next(iter(metrics.values())) if "_accuracy_" in name]
    heads = [name.replace("_accuracy_", " ") for name in numbers]
    lines = [["method", *heads], ["---"] * (1 + len(heads))]
    for title, scores in metrics.items():
        cells = [f"{100 * scores[name]:.1f}" for name in numbers]
        spreads = [scores.get(name.replace("accuracy", "spread")) for name in numbers]
        pairs = zip(cells, spreads, strict=True)
        lines.append([title, *(cell if std is None else f"{cell} ± {100 * std:.1f}" for cell, std in pairs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
