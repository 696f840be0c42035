"""Semantic localisation: where in a large picture is a phrase true? Found by tiles or by the dense map."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from ..embedding.embedder import Embedder
from ..embedding.score_maps import TILE_SIDES, build_score_maps, check_map_options
from .evaluator import Evaluator
from .metrics.localization import FIGURES, normalize_map, polygons_to_truth, score_localization


@dataclass(eq=False, repr=False)
class LocalizationEvaluator(Evaluator):
    """Look for phrases in large pictures, and compare the score maps with where the phrases are true.

    The result holds `rsu`, `ras`, `rda` and `rmi` as means over queries, the counts `num_queries` and
    `num_images`, and `queries`, the scores of each query. See `score_localization`.

    Args:
        queries: dictionaries with `image` (PIL image or path), `phrase`, and `polygons`: lists of corners x,
            y in pixels of the image as given. Consecutive queries of one image share its tiles.
        map_source: "tile" or "dense", see `TILE_SIDES`. A stock CLIP can only do "tile".
        tile_sides: sides of the tiles, in pixels. None takes those of `TILE_SIDES`.
        stride: side of a cell of the map, in pixels. The published protocol has 1. A side of 4 changes the
            scores by less than 0.01 and is 50 times faster.
        through_jpeg: whether maps are stored as JPEG and read again, as the published code does; see
            `normalize_map`.
        arrays_path: `.npz` file, see `Evaluator`. It receives the maps, in [0, 1], under the numbers of their
            queries.

    Raises:
        ValueError: if there are no queries, or an option has an impossible value. A call raises it if a
            polygon is not usable or the model has no dense map.
    """

    name, primary_metric = "localization", "rmi"
    task = "semantic localisation"

    queries: Sequence[dict]
    map_source: str = "tile"
    _: KW_ONLY
    tile_sides: Sequence[int] | None = None
    stride: int = 4
    through_jpeg: bool = False

    def __post_init__(self):
        if not self.queries:
            raise ValueError("Expected at least one query; found none.")
        for i, query in enumerate(self.queries):
            if missing := [key for key in ("image", "phrase", "polygons") if key not in query]:
                raise ValueError(f"queries[{i}] lacks {missing}; it has {sorted(query)}. Add them.")
        check_map_options(self.map_source, self.tile_sides, self.stride)

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        groups = []  # consecutive queries of one image
        for query in self.queries:
            if not groups or groups[-1][0]["image"] != query["image"]:
                groups.append([])
            groups[-1].append(query)
        scored, maps = [], {}
        for group in groups:
            image, phrases = embedder.read_image(group[0]["image"]), [query["phrase"] for query in group]
            score_maps = build_score_maps(
                embedder, image, phrases, self.map_source, self.tile_sides, self.stride
            )
            for query, cosines in zip(group, score_maps, strict=True):
                truth = polygons_to_truth(query["polygons"], cosines.shape, self.stride)
                values = normalize_map(cosines, self.stride, self.through_jpeg)
                if self.arrays_path is not None:
                    maps[str(len(scored))] = values
                scored.append({"phrase": query["phrase"]} | score_localization(values, truth, self.stride))
        self._save(**maps)
        scores = {name: float(np.mean([figures[name] for figures in scored])) for name in FIGURES}
        scores |= {"num_queries": len(scored), "num_images": len(groups), "queries": scored}
        return scores, {
            "map_source": self.map_source,
            "tile_sides": list(self.tile_sides or TILE_SIDES[self.map_source]),
            "stride": self.stride,
            "through_jpeg": self.through_jpeg,
        }
