"""A trainer on eight rows."""

import copy

import pytest
from runs import build_trainer


@pytest.fixture
def start(built, processor, rows, tmp_path):
    """Build a trainer on eight rows: two steps per epoch."""

    def start(folder=None, model=None, train_rows=None, **options):
        model = copy.deepcopy(built[0]) if model is None else model
        return build_trainer(model, processor, train_rows or rows, folder or tmp_path, **options)

    return start
