"""Counts the calls that a piece of work makes: how its cost grows, the same on busy and idle machines."""

import sys
from collections.abc import Callable, Hashable


class CountedKey:
    """A key whose comparisons are calls of Python, so that `count_calls` sees a search in a list."""

    def __init__(self, value: Hashable):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        return hash(self.value)


def count_calls(work: Callable[[], object]) -> int:
    """Count the calls of functions that `work` makes, those written in C among them."""
    number = 0

    def note(frame, event, argument):
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number
