"""Checks of what enters a metric, so that NaN, empty input and wrong shapes never become a score."""

from collections.abc import Sequence, Sized

import numpy as np
from numpy.typing import ArrayLike

# Cosines of equal vectors differ by rounding. Scores closer than this are ties, and ties count against the
# model.
TIE = 1e-6
MAX_MAGNITUDE = 1e100  # squares of larger numbers overflow


def check_numbers(values: ArrayLike, name: str, *num_axes: int) -> np.ndarray:
    """Make a float array of finite numbers.

    Args:
        values: numbers.
        name: name of the argument, for messages.
        *num_axes: numbers of axes that the array may have.

    Returns:
        The array; its own float type is kept.

    Raises:
        ValueError: if it has another number of axes, is empty, or holds NaN, infinity or a number beyond
            `MAX_MAGNITUDE`.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == "c":
            raise TypeError("complex numbers")
        array = array if array.dtype.kind == "f" else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} is not an array of numbers ({error}). Give rows of equal length."
        ) from error
    _check_shape(array, name, num_axes)
    limit = min(MAX_MAGNITUDE, float(np.finfo(array.dtype).max))
    if not (array.min() >= -limit and array.max() <= limit):  # also where one of them is NaN
        place = [int(i) for i in np.argwhere(~(np.abs(array) <= limit))[0]]
        raise ValueError(
            f"{name}{place} is {array[tuple(place)]}; expected finite numbers up to "
            f"{MAX_MAGNITUDE:g}. Look for NaN in the weights or in the images."
        )
    return array


def check_indices(values: ArrayLike, name: str, count: int, *num_axes: int) -> np.ndarray:
    """Make an array of indices from 0 to `count` - 1.

    Args:
        values: integers.
        name: name of the argument, for messages.
        count: number of things that the indices choose from.
        *num_axes: numbers of axes that the array may have.

    Raises:
        ValueError: if it has another number of axes, is empty, or an entry is not such an index.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} is not an array of integers ({error}). Give rows of equal length."
        ) from error
    _check_shape(array, name, num_axes)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} values; expected integers from 0 to {count - 1}.")
    if ((array < 0) | (array >= count)).any():
        place = [int(i) for i in np.argwhere((array < 0) | (array >= count))[0]]
        raise ValueError(f"{name}{place} is {array[tuple(place)]}; expected an index from 0 to {count - 1}.")
    return array


def check_names(names: Sequence[str], name: str) -> None:
    """Check that an argument is a list of different names.

    Raises:
        ValueError: if it is a single string, is empty, or a name occurs twice.
    """
    if isinstance(names, str) or len(names) == 0:
        raise ValueError(f"{name} is {names!r}; it must be a list of at least one name.")
    if len(set(names)) < len(names):
        repeated = sorted({entry for entry in names if list(names).count(entry) > 1})
        raise ValueError(f"{name} holds {repeated} more than once. Name each once.")


def check_lengths(**arguments: Sized) -> None:
    """Check that arguments have one entry for each thing that is scored.

    Raises:
        ValueError: if their lengths differ.
    """
    lengths = {name: len(values) for name, values in arguments.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Expected arguments of one length; found {lengths}. Give one entry of each.")


def mean(numbers) -> float:
    """Give the mean as a Python float."""
    return float(np.mean(list(numbers)))


def _check_shape(array: np.ndarray, name: str, num_axes: tuple[int, ...]) -> None:
    if array.ndim not in num_axes:
        expected = " or ".join(map(str, num_axes))
        raise ValueError(f"{name} has the shape {array.shape}; expected an array with {expected} axes.")
    if array.size == 0:
        raise ValueError(f"{name} is empty, with the shape {array.shape}; there is nothing to score.")
