"""Accuracies of choosing the correct text among wrong ones: hard negatives and multiple choice."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import TIE, check_lengths, check_numbers, mean


def score_hard_negatives(
    positives: ArrayLike,
    negatives: Sequence[Sequence[float] | np.ndarray],
    kinds: Sequence[Sequence[str]] | None = None,
) -> dict:
    """Score how often a phrase beats all of its hard negatives.

    Args:
        positives: (N,), score of each region with its own phrase.
        negatives: N lists of any length, scores of each region with its hard negatives.
        kinds: N lists, kinds of the changes of each negative. None calls all of them "unknown".

    Returns:
        `accuracy`, the fraction of regions whose phrase scores higher than every negative; `chance`, what
        guessing would give; `per_kind`, the same against the negatives of one kind alone, and
        `chance_per_kind`; `by_number`, by how many negatives a region has; and the counts `num_regions`
        (those with negatives), `num_negatives`, `num_per_kind` and `num_by_number` (both in regions).

    Raises:
        ValueError: if lengths differ, a score is NaN, or no region has a negative.

    Example:
        >>> scores = score_hard_negatives([0.5, 0.5], [[0.4], [0.1, 0.5]], [["colour"], ["size", "colour"]])
        >>> scores["accuracy"], scores["per_kind"]
        (0.5, {'colour': 0.5, 'size': 1.0})
    """
    positives = check_numbers(positives, "positives", 1)
    kinds = [["unknown"] * len(scores) for scores in negatives] if kinds is None else kinds
    check_lengths(positives=positives, negatives=negatives, kinds=kinds)
    wins = []
    for r, (positive, scores, names) in enumerate(zip(positives, negatives, kinds, strict=True)):
        check_lengths(**{f"negatives[{r}]": scores, f"kinds[{r}]": names})
        scores = check_numbers(scores, f"negatives[{r}]", 1) if len(scores) else np.zeros(0)
        wins.append(positive > scores + TIE)
    if not any(map(len, wins)):
        raise ValueError("No region has a hard negative. Give rows that have hard_negatives.")
    per_kind, by_number = {}, {}  # pairs (is correct, probability that a guess is correct)
    for win, names in zip(wins, kinds, strict=True):
        for kind in dict.fromkeys(names):
            beaten = win[[name == kind for name in names]]
            per_kind.setdefault(kind, []).append((beaten.all(), 1 / (1 + len(beaten))))
        if len(win):
            by_number.setdefault(len(win), []).append((win.all(), 1 / (1 + len(win))))
    every = [pair for pairs in by_number.values() for pair in pairs]
    per_kind = dict(sorted(per_kind.items()))
    by_number = {str(number): pairs for number, pairs in sorted(by_number.items())}
    return {
        "accuracy": mean(is_correct for is_correct, _ in every),
        "chance": mean(chance for _, chance in every),
        "num_regions": len(every),
        "num_negatives": sum(map(len, wins)),
        "per_kind": {kind: mean(is_correct for is_correct, _ in pairs) for kind, pairs in per_kind.items()},
        "chance_per_kind": {kind: mean(chance for _, chance in pairs) for kind, pairs in per_kind.items()},
        "num_per_kind": {kind: len(pairs) for kind, pairs in per_kind.items()},
        "by_number": {name: mean(is_correct for is_correct, _ in pairs) for name, pairs in by_number.items()},
        "num_by_number": {name: len(pairs) for name, pairs in by_number.items()},
    }


def score_choices(
    scores: Sequence[ArrayLike], answers: Sequence[int], subjects: Sequence[str] | None = None
) -> dict:
    """Score multiple choice.

    Args:
        scores: Q lists, scores of the two or more options of each question.
        answers: (Q,), index of the correct option of each question.
        subjects: (Q,), subject of each question, for scores by subject. None omits them.

    Returns:
        `accuracy`, the fraction of questions whose correct option scores higher than every other; `chance`,
        what guessing would give; `num_questions`; and with `subjects` the same by name: `per_subject`,
        `chance_per_subject`, `num_per_subject`.

    Raises:
        ValueError: if there are no questions, lengths differ, a score is NaN, or an answer is not an index.

    Example:
        >>> score_choices([[0.1, 0.3], [0.2, 0.2]], [1, 0])["accuracy"]
        0.5
    """
    check_lengths(scores=scores, answers=answers, **({} if subjects is None else {"subjects": subjects}))
    if len(scores) == 0:
        raise ValueError("scores is empty; expected at least one question.")
    is_correct, chances = [], []
    for i, (options, answer) in enumerate(zip(scores, answers, strict=True)):
        options = check_numbers(options, f"scores[{i}]", 1)
        is_index = isinstance(answer, int | np.integer) and not isinstance(answer, bool)
        if len(options) < 2 or not is_index or not 0 <= answer < len(options):
            raise ValueError(
                f"Question {i} has {len(options)} options and the answer {answer!r}. "
                "Give two or more options, and the index of the correct one, counted from 0."
            )
        others = np.delete(options, answer)
        is_correct.append(bool((options[answer] > others + TIE).all()))
        chances.append(1 / len(options))
    result = {"accuracy": mean(is_correct), "chance": mean(chances), "num_questions": len(scores)}
    if subjects is None:
        return result
    members = {name: [] for name in sorted(set(subjects))}
    for i, name in enumerate(subjects):
        members[name].append(i)
    return result | {
        "per_subject": {name: mean(is_correct[i] for i in member) for name, member in members.items()},
        "chance_per_subject": {name: mean(chances[i] for i in member) for name, member in members.items()},
        "num_per_subject": {name: len(member) for name, member in members.items()},
    }
