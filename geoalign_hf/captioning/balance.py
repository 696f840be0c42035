"""Balanced hard negatives, which cannot be distinguished from right phrases without the image.

A hard negative gives itself away if its words are wrong more often than right: where most ships are white,
"a red ship" is probably wrong. In a balanced set, "a red ship" is the wrong phrase beside "a white ship" as
often as the other way round. Whatever scores the two texts alone is then right in half of the cases.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from logging import getLogger
from typing import NamedTuple

import numpy as np

logger = getLogger(__name__)


class Contrast(NamedTuple):
    """One hard negative and where it stands.

    Args:
        row: Number of the row.
        region: Number of the region in its row.
        number: Number of the negative among those of the region.
        kind: Kind of the change.
        right: The phrase of the region.
        wrong: The hard negative.
    """

    row: int
    region: int
    number: int
    kind: str
    right: str
    wrong: str


def list_contrasts(rows: Sequence[dict]) -> list[Contrast]:
    """List all hard negatives of some rows, which need `phrases` and `hard_negatives`."""
    contrasts = []
    for i, row in enumerate(rows):
        kinds = row.get("negative_kinds") or [
            ["unknown"] * len(words) for words in row["hard_negatives"] or []
        ]
        for r, of_region in enumerate(row["hard_negatives"] or []):
            for k, wrong in enumerate(of_region):
                contrasts.append(Contrast(i, r, k, kinds[r][k], row["phrases"][r], wrong))
    return contrasts


def find_change(right: str, wrong: str) -> tuple[str, str]:
    """Return the words in which two phrases differ.

    Example:
        >>> find_change("a white ship at the left", "a red ship at the left")
        ('white', 'red')
    """
    a, b = right.split(), wrong.split()
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    stop = 0
    while stop < min(len(a), len(b)) - start and a[-1 - stop] == b[-1 - stop]:
        stop += 1
    return " ".join(a[start : len(a) - stop]), " ".join(b[start : len(b) - stop])


def _key_of_phrases(contrast: Contrast) -> tuple[str, str]:
    return contrast.right, contrast.wrong


def _key_of_changes(contrast: Contrast) -> tuple[str, str]:
    return find_change(contrast.right, contrast.wrong)


def match_reciprocals(
    contrasts: Sequence[Contrast], by_change: bool = False, seed: int = 0
) -> list[tuple[Contrast, Contrast]]:
    """Pair contrasts (right p, wrong x) with contrasts (right x, wrong p) of other regions.

    Args:
        contrasts: Hard negatives of a whole data set.
        by_change: Whether only the changed words must be exchanged, in phrases that may differ otherwise.
        seed: Seed of the choice of the pairs if there are more contrasts of one kind than of the other.

    Returns:
        Pairs; every contrast is in one pair at most.
    """
    make_key: Callable[[Contrast], tuple[str, str]] = _key_of_changes if by_change else _key_of_phrases
    by_key: dict[tuple[str, str, str], list[Contrast]] = defaultdict(list)
    for contrast in contrasts:
        by_key[contrast.kind, *make_key(contrast)].append(contrast)
    rng = np.random.default_rng(seed)
    pairs = []
    for kind, right, wrong in sorted(by_key):
        if right < wrong and (others := by_key.get((kind, wrong, right))):
            sides = [_shuffle(side, rng) for side in (by_key[kind, right, wrong], others)]
            pairs += zip(*sides, strict=False)
    return pairs


def _shuffle(contrasts: list[Contrast], rng: np.random.Generator) -> list[Contrast]:
    return [contrasts[i] for i in rng.permutation(len(contrasts))]


def balance_negatives(
    rows: Sequence[dict], by_change: bool = False, max_negatives: int | None = None, seed: int = 0
) -> tuple[list[dict], dict[str, dict[str, int]]]:
    """Keep the hard negatives of a data set that balance each other.

    For an evaluation, whole phrases must be exchanged: then every scorer that sees only text is right in half
    of the cases. For training on phrases of many forms, `by_change` balances the changed words.

    Args:
        rows: Rows of the whole data set with all possible hard negatives; images are not needed.
        by_change: Rule of the pairs, see `match_reciprocals`.
        max_negatives: Maximum number of negatives of one region. None keeps all.
        seed: Seed of the choice of the surplus negatives that are dropped.

    Returns:
        The rows with fewer `hard_negatives` and `negative_kinds`, and for each kind the numbers of
        `candidates` and of those that were `kept`. A kind of which none is kept cannot be balanced.
    """
    contrasts = list_contrasts(rows)
    pairs = match_reciprocals(contrasts, by_change, seed)
    kept = set(_limit(pairs, max_negatives, seed))
    candidates, remaining = (Counter(contrast.kind for contrast in part) for part in (contrasts, kept))
    counts = {kind: {"candidates": candidates[kind], "kept": remaining[kind]} for kind in sorted(candidates)}
    by_region: dict[tuple[int, int], list[Contrast]] = defaultdict(list)
    for contrast in sorted(kept):
        by_region[contrast.row, contrast.region].append(contrast)
    balanced = []
    for i, row in enumerate(rows):
        regions = [by_region[i, r] for r in range(len(row["phrases"]))]
        balanced.append(
            row
            | {
                "hard_negatives": [[contrast.wrong for contrast in region] for region in regions],
                "negative_kinds": [[contrast.kind for contrast in region] for region in regions],
            }
        )
    return balanced, counts


def score_text_only(rows: Sequence[dict], seed: int = 0) -> dict | None:
    """Return `text_baseline.score_text_baseline` of rows, or None if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        logger.warning("scikit-learn is not installed, so the text-only baseline is not measured.")
        return None
    from .text_baseline import score_text_baseline  # an optional dependency

    return score_text_baseline(rows, seed=seed)


def _limit(pairs: list[tuple[Contrast, Contrast]], most: int | None, seed: int) -> list[Contrast]:
    """Take pairs in random order, rare kinds first, while both of their regions have room."""
    order = np.random.default_rng([seed, 1]).permutation(len(pairs)).tolist()
    frequency: dict[str, int] = defaultdict(int)
    for first, _ in pairs:
        frequency[first.kind] += 1
    taken: dict[tuple[int, int], int] = defaultdict(int)
    kept = []
    for i in sorted(order, key=lambda i: frequency[pairs[i][0].kind]):
        places = [(contrast.row, contrast.region) for contrast in pairs[i]]
        if most is None or all(taken[place] < most for place in places):
            kept += pairs[i]
            for place in places:
                taken[place] += 1
    return kept
