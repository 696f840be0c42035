"""Scores of evaluators: checked, and made of plain values."""

import math

import numpy as np
import torch


def check_scores(evaluator: str, scores: object) -> dict:
    """Check the result of an evaluator, and turn its numbers into plain ones that JSON can hold.

    Args:
        evaluator: name of the evaluator, for the message.
        scores: dictionary that the evaluator returned. It may hold numbers, texts, lists and dictionaries at
            any depth.

    Returns:
        The same with plain numbers in place of NumPy's and torch's.

    Raises:
        TypeError: if it is not a dictionary, or holds something else.
        ValueError: if a number is NaN or infinite.

    Example:
        >>> check_scores("regions", {"top1": np.float32(0.5), "per_concept": {"ship": torch.tensor(1.0)}})
        {'top1': 0.5, 'per_concept': {'ship': 1.0}}
    """
    if not isinstance(scores, dict):
        raise TypeError(
            f"the evaluator {evaluator!r} returned a {type(scores).__name__}; it must return a dictionary of "
            "scores, whose single numbers are floats."
        )
    return {name: _check_value(value, evaluator, str(name)) for name, value in scores.items()}


def _check_value(value, evaluator: str, place: str):
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _check_value(item, evaluator, f"{place}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_check_value(item, evaluator, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"the evaluator {evaluator!r} gave the score {place} = {value}; it must be a finite number. Look "
            "at its data, and at the last losses. Checkpoints that were saved before are complete."
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"the evaluator {evaluator!r} gave {place}, which is a {type(value).__name__}; scores must be "
        "numbers, texts, lists or dictionaries."
    )
