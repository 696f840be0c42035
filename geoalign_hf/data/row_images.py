"""The images of a dataset of rows, as a sequence."""

from collections.abc import Sequence


class RowImages(Sequence):
    """The images of some rows, each read when it is asked for.

    Args:
        rows: a dataset with `image`.
        places: of the rows.
    """

    def __init__(self, rows, places: list[int]):
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int):
        return self.rows[self.places[i]]["image"]
