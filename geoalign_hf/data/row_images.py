"""The images of a dataset of rows, as a sequence."""

from collections.abc import Sequence

from datasets import Dataset
from PIL import Image


class RowImages(Sequence):
    """The images of some rows as a sequence; each image is decoded when it is accessed.

    Args:
        rows: dataset with an `image` column.
        row_ids: indices of the rows, in the order of the sequence.
    """

    def __init__(self, rows: Dataset, row_ids: list[int]):
        self.rows, self.row_ids = rows, row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, i: int) -> Image.Image:
        return self.rows[self.row_ids[i]]["image"]
