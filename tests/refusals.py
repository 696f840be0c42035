"""A check of refusals: that an error states the facts, in whatever words."""

from contextlib import contextmanager

import pytest


@contextmanager
def refuses(*facts: str, kind: type[Exception] = ValueError):
    """Expect an error whose message contains every fact: a name, a number, a file, a remedy."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert all(fact in message for fact in facts), f"{message!r} lacks one of {facts}"
