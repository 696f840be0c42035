"""What training sees of the rows: in which order, how changed, and which of their words and regions.

Everything random here follows from the seed, the epoch and the row's index alone, so a resumed run, whatever
its number of workers, sees what an unbroken one would have seen.
"""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset, Sampler

from .schema import REGION_COLUMNS


class TrainingRows(Dataset):
    """Rows as training sees them: augmented, with one of their captions and some of their regions.

    Args:
        rows: a dataset of rows.
        augment: changes a row, given a generator; None leaves it.
        max_regions: R, the most to keep.
        seed: of the run.
        max_negatives: the most hard negatives of a region to keep; None keeps all.
        max_crops: the most regions to name in `crops`; None names none.
    """

    def __init__(
        self,
        rows,
        augment: Callable | None,
        max_regions: int,
        seed: int,
        max_negatives: int | None = None,
        max_crops: int | None = None,
    ):
        self.rows, self.augment, self.seed = rows, augment, seed
        self.max_regions, self.max_negatives, self.max_crops = max_regions, max_negatives, max_crops
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
        row = dict(self.rows[index])
        if self.augment is not None:
            row = self.augment(row, generator)
        if row.get("captions"):
            row["captions"] = _draw(row["captions"], 1, generator)
        if len(row["boxes"]) > self.max_regions:
            kept = _draw(range(len(row["boxes"])), self.max_regions, generator)
            row |= {name: [row[name][r] for r in kept] for name in REGION_COLUMNS if row.get(name)}
        if self.max_negatives is not None and row.get("hard_negatives"):
            row["hard_negatives"] = [
                _draw(phrases, self.max_negatives, generator) for phrases in row["hard_negatives"]
            ]
        if self.max_crops is not None:
            row["crops"] = _draw(range(len(row["boxes"])), self.max_crops, generator)
        return row | {"row_id": index}


def _draw(items, most: int, generator: torch.Generator) -> list:
    """Draw at most so many, in their own order."""
    drawn = torch.randperm(len(items), generator=generator)[:most].sort().values.tolist()
    return [items[i] for i in drawn]


class EpochSampler(Sampler):
    """Shuffles by the seed and the epoch alone."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())
