"""The views of a data set that training sees, and their order.

All random choices here depend only on the seed, the epoch and the index. A resumed run therefore sees what an
uninterrupted run would have seen, with any number of workers.
"""

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .augmentation import Augmentation
from .region_windows import ImagePyramid, list_corners, view_region
from .schema import REGION_COLUMNS

CACHE_BYTES = 2**30


class TrainingDataset(Dataset):
    """Views of rows: whole images and windows around single regions, with some of their texts and regions.

    View i shows row i, or a window around a region that is drawn from all regions of the data set; see
    `Augmentation`. Images are decoded once and kept, up to 1 GiB in each process that prepares views.

    Args:
        rows: a dataset of rows.
        augment: options of the views; None shows every row as it is.
        max_regions: R, the largest number of regions of a view.
        seed: seed of the run.
        max_negatives: largest number of hard negatives of a region; None keeps all.
        max_crops: largest number of regions that a view lists in `crops`; None lists none.
        image_size: side of a window in pixels, which should be the model's input size.
    """

    def __init__(
        self,
        rows,
        augment: Augmentation | None,
        max_regions: int,
        seed: int,
        max_negatives: int | None = None,
        max_crops: int | None = None,
        image_size: int = 224,
    ):
        self.rows, self.augment, self.seed, self.image_size = rows, augment, seed, image_size
        self.max_regions, self.max_negatives, self.max_crops = max_regions, max_negatives, max_crops
        self.epoch = 0
        self._cache, self._cached_bytes = {}, 0
        if augment is not None:
            self._first_regions, self._cumulated = _weigh_regions(rows, augment.balance)

    def __len__(self) -> int:
        return len(self.rows) * (1 if self.augment is None else self.augment.views_per_row)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
        number, num_fixed = index % len(self.rows), 0
        if self.augment is None:
            view = dict(self.rows[number])
        elif len(self._cumulated) == 0 or torch.rand((), generator=generator) < self.augment.whole_share:
            view = self.augment(self._shrink(*self._read(number)), generator)
        else:
            number, r = self._draw_region(generator)
            row, pyramid = self._read(number)
            view, num_fixed = view_region(row, r, self.image_size, self.augment, generator, pyramid), 1
        return self._thin_out(view, num_fixed, generator) | {"row_id": number}

    def _draw_region(self, generator: torch.Generator) -> tuple[int, int]:
        """Draw a region of the data set: its row, and its number there."""
        target = float(torch.rand((), generator=generator, dtype=torch.float64)) * self._cumulated[-1]
        region = min(int(np.searchsorted(self._cumulated, target, side="right")), len(self._cumulated) - 1)
        number = int(np.searchsorted(self._first_regions, region, side="right")) - 1
        return number, region - int(self._first_regions[number])

    def _read(self, number: int) -> tuple[dict, ImagePyramid]:
        """Read a row and its image, from the cache if it is there."""
        if number in self._cache:
            return self._cache[number]
        row = dict(self.rows[number])
        pyramid = ImagePyramid(row["image"])
        row["image"] = pyramid.levels[0]
        if self._cached_bytes + pyramid.num_bytes <= CACHE_BYTES:
            self._cache[number] = row, pyramid
            self._cached_bytes += pyramid.num_bytes
        return row, pyramid

    def _shrink(self, row: dict, pyramid: ImagePyramid) -> dict:
        """Take a smaller copy of a whole image, which is still larger than the model's input."""
        scale = min(row["image"].size) / self.image_size
        image = pyramid.get_level(2 ** np.floor(np.log2(max(scale, 1))))
        factors = np.array(image.size) / np.array(row["image"].size)
        boxes = (np.array(row["boxes"]).reshape(-1, 2, 2) * factors).reshape(-1, 4).tolist()
        quads = row.get("quads") or []
        if self.augment.whole_share < 1 and not quads:  # windows have quads, and a batch has one form
            quads = [list_corners(box) for box in row["boxes"]]
        quads = (np.array(quads).reshape(-1, 4, 2) * factors).tolist()
        return row | {"image": image, "boxes": boxes, "quads": quads}

    def _thin_out(self, row: dict, num_fixed: int, generator: torch.Generator) -> dict:
        """Draw one caption, and up to their numbers the regions after the fixed ones, negatives and crops."""
        if row.get("captions"):
            row["captions"] = _draw(row["captions"], 1, generator)
        others = [r for r in self._list_large_regions(row) if r >= num_fixed]
        if len(others) > self.max_regions - num_fixed:
            others = _draw(others, self.max_regions - num_fixed, generator)
        kept = [*range(num_fixed), *others]
        if len(kept) < len(row["boxes"]):
            row |= {name: [row[name][r] for r in kept] for name in REGION_COLUMNS if row.get(name)}
        if self.max_negatives is not None and row.get("hard_negatives"):
            row["hard_negatives"] = [
                _draw(phrases, self.max_negatives, generator) for phrases in row["hard_negatives"]
            ]
        if self.max_crops is not None:
            row["crops"] = _draw(range(len(row["boxes"])), self.max_crops, generator)
        return row

    def _list_large_regions(self, view: dict) -> list[int]:
        """List the regions that are large enough in this view to be learned from it."""
        if self.augment is None or self.augment.whole_share == 1:
            return list(range(len(view["boxes"])))
        corners = np.reshape(view["boxes"], (-1, 2, 2))
        shares = (np.ptp(corners, axis=1) / view["image"].size).max(axis=1)
        return np.flatnonzero(shares >= self.augment.min_region_side).tolist()


def _weigh_regions(rows, balance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the first region of each row, and the cumulated weights of all regions."""
    columns = rows.select_columns(["concepts"]) if hasattr(rows, "select_columns") else rows
    concepts = [row["concepts"] for row in columns]
    first_regions = np.cumsum([0, *map(len, concepts)])[:-1]
    names = np.array([name for names in concepts for name in names])
    _, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
    return first_regions, np.cumsum(counts[inverse] ** -float(balance))


def _draw(items, most: int, generator: torch.Generator) -> list:
    """Draw at most `most` of the items, and return them in their own order."""
    drawn = torch.randperm(len(items), generator=generator)[:most].sort().values.tolist()
    return [items[i] for i in drawn]


class EpochSampler(Sampler):
    """Shuffles by the seed and the epoch alone.

    Args:
        num_views: number of views of an epoch.
        seed: seed of the run.
    """

    def __init__(self, num_views: int, seed: int):
        self.num_views, self.seed, self.epoch = num_views, seed, 0

    def __len__(self) -> int:
        return self.num_views

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        return iter(torch.randperm(self.num_views, generator=generator).tolist())
