"""New concepts from a few boxes each: drawn, learnt in closed form or by LoRA, scored beside the old ones.

What enters are rows and a model that was not told of the concepts; what leaves are classifiers, a unit vector
or column per concept, and their scores on new boxes, on old ones (what was forgotten), and on both together.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..captioning.grammar import add_article
from ..data.augmentation import Augmentation
from ..data.schema import REGION_COLUMNS, build_rows
from ..evaluation.metrics.classification import rank_concepts, score_concepts
from ..losses.objective import LossWeights
from .arguments import TrainingConfig
from .lora import AdapterConfig, adapt_model
from .trainer import train


def _option(default, what: str):
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class FewShotConfig:
    """How concepts are learnt from few boxes. Every field says in its help what it is."""

    shots: str = _option("1,4,16", "boxes per new concept, with commas between")
    num_seeds: int = _option(3, "draws of these boxes; their numbers are 0, 1, ...")
    rehearsed: int = _option(0, "boxes of each old concept that LoRA also sees; 0: it has no old data")
    ridge: float = _option(3.0, "per shot; what the ridge probe adds to the diagonal")
    num_steps: int = _option(200, "of LoRA")
    learning_rate: float = _option(5e-4, "of LoRA, at its highest")
    batch_size: int = _option(12, "of LoRA, boxes per step at most")
    mixed_precision: str | None = _option(None, "of LoRA: no, bf16 or fp16")

    def __post_init__(self):
        self.list_shots()
        for name, low in (("num_seeds", 1), ("rehearsed", 0), ("num_steps", 1), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; it must be above 0.")

    def list_shots(self) -> list[int]:
        """Give the numbers of `shots`, the fewest first.

        Raises:
            ValueError: if one is no whole number of at least 1.
        """
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"shots is {self.shots!r}; it must be whole numbers from 1, such as 1,4,16.")
        return sorted({int(part) for part in parts})


def split_concepts(
    there: Sequence[str], concepts: Sequence[str] | None, old_concepts: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Say which concepts are new, and which are old and kept in view.

    Args:
        there: all that occur.
        concepts: the new ones; None takes all but the old ones.
        old_concepts: the old ones; None takes all that are not new, and none where no new ones are named.

    Raises:
        ValueError: if one does not occur, is both, or none is new.

    Example:
        >>> split_concepts(["bridge", "road", "ship"], ["ship"], None)
        (['ship'], ['bridge', 'road'])
    """
    for names in (concepts or (), old_concepts or ()):
        if unknown := sorted(set(names) - set(there)):
            raise ValueError(f"the rows have no concepts {unknown}; they have {sorted(there)}.")
    if both := sorted(set(concepts or ()) & set(old_concepts or ())):
        raise ValueError(f"the concepts {both} are named as new and as old. Name each once.")
    new = sorted(set(concepts or set(there) - set(old_concepts or ())))
    if not new:
        raise ValueError(f"all concepts, {sorted(there)}, are named as old. Leave the new ones out of them.")
    return new, sorted(set(there) - set(new) if old_concepts is None else old_concepts)


def split_rows(rows, share: float = 0.25, seed: int = 0) -> tuple:
    """Set a share of the images aside, drawn by the seed; give the others and these."""
    order = np.random.default_rng(seed).permutation(len(rows))
    num_aside = round(share * len(rows))
    return rows.select(sorted(order[num_aside:])), rows.select(sorted(order[:num_aside]))


def draw_shots(rows, concepts: Sequence[str], num_shots: int, seed: int):
    """Draw boxes of each concept, the same ones first however many there are to be.

    Args:
        rows: a dataset of rows.
        concepts: to draw of.
        num_shots: boxes of each.
        seed: of the draw, which for one concept does not depend on the others.

    Returns:
        A row per box, in the order of `concepts`: its image without other boxes, or words of the whole.

    Raises:
        ValueError: if a concept has fewer boxes.
    """
    drawn = []
    for concept in concepts:
        places = [
            (i, r)
            for i, names in enumerate(rows["concepts"])
            for r, name in enumerate(names)
            if name == concept
        ]
        if len(places) < num_shots:
            raise ValueError(
                f"{num_shots} boxes of {concept!r} are asked for, but there are {len(places)}. "
                "Ask for fewer shots, or give more boxes."
            )
        generator = np.random.default_rng([seed, *concept.encode()])
        for place in generator.permutation(len(places))[:num_shots]:
            i, r = places[place]
            row = rows[i]
            kept = {name: [row[name][r]] for name in REGION_COLUMNS if row.get(name)}
            drawn.append(kept | {name: row.get(name) for name in ("image", "source")})
    return build_rows(drawn)


def make_prototypes(embeds: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Average the unit vectors of each concept, and bring the means to unit length.

    Args:
        embeds: (N, D).
        references: (N,), the concept of each, all of 0 to C - 1.

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
    """Bring the sum of each prototype and the embedding of its name to unit length.

    A region is nearer to other regions than to texts, so that bare prototypes take regions from the old
    concepts, which are known by their names alone.

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
    """Fit a linear map from embeddings to one-hot concepts, (X'X + ridge I)^-1 X'Y in float64.

    Args:
        embeds: (N, D).
        references: (N,), the concept of each, of 0 to C - 1.
        ridge: what is added to the diagonal.

    Returns:
        (C, D), whose products with an embedding rank the concepts.

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
    """Train adapters on a few boxes, each against the concepts of its batch and against all other names.

    Args:
        model: the base, changed in place.
        processor: of the base.
        rows: of `draw_shots`.
        concepts: all, new and old; as hard negatives they keep their distance though no box shows them.
        config: how long and how fast.
        adapters: where they sit.
        output_dir: as for `train`, whose `final/` is the adapter.
        seed: of the order, the augmentation and the adapters.
        about: for the card, see `train`.

    Returns:
        The adapted model.

    Raises:
        ValueError: if `adapters` names no tower.
    """
    if not adapters.lora:
        raise ValueError("lora is ''; it must name towers that get adapters: vision, text or vision,text.")
    negatives = {name: [add_article(other) for other in concepts if other != name] for name in concepts}
    told = [
        {
            "phrases": [add_article(name) for name in row["concepts"]],
            "hard_negatives": [negatives[name] for name in row["concepts"]],
            "negative_kinds": [["concept"] * len(negatives[name]) for name in row["concepts"]],
        }
        for row in rows.remove_columns("image")
    ]
    rows = build_rows(row | words for row, words in zip(rows, told, strict=True))
    batch_size = min(config.batch_size, len(rows))
    torch.manual_seed(seed)  # of the adapters' first values
    model = adapt_model(model, adapters)
    off = dict.fromkeys(asdict(LossWeights()), 0.0)
    training = TrainingConfig(
        output_dir=str(output_dir),
        num_epochs=-(-config.num_steps // (len(rows) // batch_size)),
        batch_size=batch_size,
        learning_rate=config.learning_rate,
        max_negatives=len(concepts),
        mixed_precision=config.mixed_precision,
        seed=seed,
    )
    weights = LossWeights(**off | {"concept": 1.0, "hard_negative": 1.0})
    augment = Augmentation(min_context=1.5, max_context=8.0)  # evaluated on whole images, so views are wide
    train(model, processor, rows, weights, training, augment, about=about)
    return model


def score_few_shot(scores: np.ndarray, references: np.ndarray, concepts: list[str], num_new: int) -> dict:
    """Score new concepts among themselves, old ones among themselves, and all among all.

    Args:
        scores: (N, C), of every box for every concept, the new ones first.
        references: (N,), the right ones.
        concepts: C names.
        num_new: how many of them are new.

    Returns:
        `new_accuracy_micro`, `new_accuracy_macro`: new boxes, new names to choose from; likewise `all_...`
        (every box and name), `old_...` (old boxes, old names: what the embeddings have forgotten) and
        `kept_...` (old boxes, every name: what new names take away). The last three only with old concepts.

    Raises:
        ValueError: if there are no boxes of new concepts, or old concepts without boxes.
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
    """Give the mean of each accuracy over seeds, and as `spread` its standard deviation (by n - 1).

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
    """Write results as a Markdown table, in percent, the mean ± the spread over seeds."""
    numbers = [name for name in next(iter(metrics.values())) if "_accuracy_" in name]
    heads = [name.replace("_accuracy_", " ") for name in numbers]
    lines = [["method", *heads], ["---"] * (1 + len(heads))]
    for title, scores in metrics.items():
        cells = [f"{100 * scores[name]:.1f}" for name in numbers]
        spreads = [scores.get(name.replace("accuracy", "spread")) for name in numbers]
        pairs = zip(cells, spreads, strict=True)
        lines.append([title, *(cell if std is None else f"{cell} ± {100 * std:.1f}" for cell, std in pairs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
