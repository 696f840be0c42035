"""A baseline for hard negatives that never sees an image: a bag of words with logistic regression.

It needs scikit-learn, as in `pip install geoalign_hf[probe]`.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from .balance import Contrast, list_contrasts, match_reciprocals

MOST_CONTRASTS = 50_000  # more do not change the result


def score_text_baseline(
    rows: Sequence[dict], fit_rows: Sequence[dict] | None = None, num_folds: int = 5, seed: int = 0
) -> dict:
    """Measure how often hard negatives can be told from right phrases without the image.

    A linear model of words and word pairs learns to prefer the right phrase, from other rows than those that
    it is scored on. Equal scores count half. 0.5 means that the image is needed.

    Args:
        rows: Rows with `phrases`, `hard_negatives` and optional `negative_kinds`; images are not needed.
        fit_rows: Rows to learn from, such as the training split. By default the model is cross-validated: all
            negatives of a row are in one fold, and so are two that balance each other. Otherwise one fold
            would have more of what the others have less of, and the accuracy would fall below 0.5.
        num_folds: Number of folds; fewer if there are fewer rows.
        seed: Seed of the draw of negatives if there are more than 50,000.

    Returns:
        `accuracy`, `per_kind` (kind: accuracy) and `num_negatives`. If there is nothing to learn from,
        `accuracy` is None and `per_kind` is empty.
    """
    contrasts = _draw_contrasts(rows, seed)
    if fit_rows is not None:
        others = _draw_contrasts(fit_rows, seed)
        splits = [(range(len(others)), range(len(others), len(others) + len(contrasts)))] if others else []
        wins = _score_splits([*others, *contrasts], splits)[len(others) :]
    else:
        groups = _group(contrasts, seed)
        num_folds = min(num_folds, len(np.unique(groups)))
        splits = list(GroupKFold(num_folds).split(groups, groups=groups)) if num_folds > 1 else []
        wins = _score_splits(contrasts, splits)
    if not splits or not contrasts:
        return {"accuracy": None, "per_kind": {}, "num_negatives": len(contrasts)}
    kinds = np.array([contrast.kind for contrast in contrasts])
    return {
        "accuracy": float(wins.mean()),
        "per_kind": {str(kind): float(wins[kinds == kind].mean()) for kind in np.unique(kinds)},
        "num_negatives": len(contrasts),
    }


def _draw_contrasts(rows: Sequence[dict], seed: int) -> list[Contrast]:
    contrasts = list_contrasts(rows)
    if len(contrasts) <= MOST_CONTRASTS:
        return contrasts
    chosen = np.random.default_rng(seed).choice(len(contrasts), MOST_CONTRASTS, replace=False)
    return [contrasts[i] for i in np.sort(chosen)]


def _group(contrasts: list[Contrast], seed: int) -> np.ndarray:
    """Return the group of each contrast: its row, or that of the contrast that balances it."""
    groups = {contrast: contrast.row for contrast in contrasts}
    for first, second in match_reciprocals(contrasts, seed=seed):
        groups[second] = first.row
    return np.array([groups[contrast] for contrast in contrasts])


def _score_splits(contrasts: list[Contrast], splits: list) -> np.ndarray:
    """Return for each contrast 1 if the right phrase scores higher, 0.5 if both score the same, else 0.

    Args:
        contrasts: Hard negatives.
        splits: Pairs of numbers to fit on and numbers to score.
    """
    wins = np.full(len(contrasts), 0.5)
    if not splits:
        return wins
    texts = [text for contrast in contrasts for text in (contrast.right, contrast.wrong)]
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(texts).astype(float)
    difference = words[::2] - words[1::2]
    # The model learns the class 1 from right minus wrong, and the class -1 from wrong minus right.
    for fitted, scored in splits:
        both = vstack([difference[fitted], -difference[fitted]])
        classes = np.repeat([1, -1], len(fitted))
        model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(both, classes)
        scores = difference[scored] @ model.coef_[0]
        wins[scored] = np.where(np.abs(scores) < 1e-9, 0.5, scores > 0)
    return wins
