"""Embed the tiles and regions of scenes into an archive of GeoParquet files.

Each file is one part of a scene: up to `part_size` of its tiles or regions. Parts are written atomically, by
any number of processes; `scenes.json` beside them records the model, the protocol and the list of all parts.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import pandas
import pyarrow
import shapely
import torch
from pyarrow import parquet
from transformers.utils import logging

from ..embedding.embedder import Embedder
from ..embedding.shards import fingerprint_model
from ..storage import LOCK_NAME, PARTIAL, atomic_file, lock_folder, no_progress_bars, read_json, write_json
from .reader import Scene, read_ahead
from .regions import embed_scene_regions, is_coco, place_features, read_coco_regions, read_features, to_wgs84

DESCRIPTION = "scenes.json"
RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".img"})


def list_scenes(paths: Iterable[str | Path]) -> list[Path]:
    """List raster files: those that are given, and those in the folders that are given.

    Raises:
        ValueError: if a path does not exist, or a folder holds no rasters.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in RASTER_SUFFIXES)
            if not inside:
                raise ValueError(
                    f"{path} holds no files ending in {sorted(RASTER_SUFFIXES)}. Name the files."
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist. Give raster files, or folders of them.")
    return found


def list_windows(scene: Scene, side: int, overlap: float = 0.0) -> list[tuple[int, int, int, int]]:
    """List square windows that cover a scene: xyxy in pixels. The last ones end at the scene's edges."""
    step = max(1, round(side * (1 - overlap)))

    def list_starts(length: int) -> list[int]:
        last = max(length - side, 0)
        return sorted({*range(0, last, step), last})

    return [(x, y, x + side, y + side) for y in list_starts(scene.height) for x in list_starts(scene.width)]


class Part(NamedTuple):
    """A part of an archive: its file, its scene, "tile" or "region", the first of those and their number."""

    name: str
    scene: Path
    kind: str
    start: int
    count: int


@dataclass
class SceneJob:
    """Scenes to embed into an archive, and how.

    Args:
        scenes: paths of the rasters.
        output: folder of the archive.
        tile_side: side of a tile, in pixels of the scene.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).
        bands: numbers of the bands to use, see `Scene`.
        stretch: two percentiles that become 0 and 255, see `Scene`.
        limits: two values that become 0 and 255, see `Scene`.
        rule: `image_rule` of the model's processor, see `Scene`.
        regions: vector file of regions; each scene gets those that touch it. Or a COCO file.
        buffer: radius of a point or line in metres, see `read_regions`.
        context: side of a window as a multiple of the region's longer side, see `embed_scene_regions`.
        part_size: number of tiles or regions per file.

    Raises:
        ValueError: if there are no scenes, one is given twice or cannot be used, or an option has an
            impossible value.
    """

    scenes: Sequence[str | Path]
    output: Path
    tile_side: int
    overlap: float = 0.0
    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    rule: dict | None = None
    regions: str | Path | None = None
    buffer: float | None = None
    context: float | None = None
    part_size: int = 1024
    parts: list[Part] = field(init=False, repr=False)

    def __post_init__(self):
        self.output, paths = Path(self.output), sorted(map(Path, self.scenes))
        if not paths or len(set(paths)) < len(paths):
            raise ValueError(
                f"There are {len(paths)} scenes, {len(set(paths))} of them different. Give each once."
            )
        if min(self.tile_side, self.part_size) < 1 or not 0 <= self.overlap < 1:
            raise ValueError(
                f"tile_side is {self.tile_side}, part_size {self.part_size} and overlap {self.overlap}; "
                "expected sides and sizes of at least 1, and an overlap of at least 0 and below 1."
            )
        self._opened: tuple[Path, Scene, geopandas.GeoDataFrame | None] | None = None
        self._features = read_features(Path(self.regions)) if self._has_features() else None
        self.parts = [part for path in paths for part in self._list_parts(path)]

    def _has_features(self) -> bool:
        return self.regions is not None and not is_coco(Path(self.regions))

    def _open(self, path: Path) -> tuple[Scene, geopandas.GeoDataFrame | None]:
        """Open a scene and its regions. The last one stays open, since its stretch is measured once."""
        if self._opened is None or self._opened[0] != path:
            scene, regions = Scene(path, self.bands, self.stretch, self.limits, self.rule), None
            if self._features is not None:
                placed = place_features(self._features, Path(str(self.regions)), scene, self.buffer)
                regions = placed[placed.intersects(scene.outline)]
            elif self.regions is not None:
                regions = read_coco_regions(Path(self.regions), scene)
            self._opened = path, scene, regions
        return self._opened[1:]

    def _list_parts(self, path: Path) -> Iterator[Part]:
        scene, regions = self._open(path)
        of_path = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # scenes may share a name
        counts = {"tile": len(list_windows(scene, self.tile_side, self.overlap))}
        counts["region"] = 0 if regions is None else len(regions)
        for kind, count in counts.items():
            for number, start in enumerate(range(0, count, self.part_size)):
                name = f"{path.stem}-{of_path}-{kind}s-{number:05d}.parquet"
                yield Part(name, path, kind, start, min(self.part_size, count - start))

    def describe(self, embedder: Embedder, name: str) -> dict:
        """Describe how the archive is made: what all its parts share."""
        context = embedder.resolve_view("window", self.context)[1] if self.regions else [None]
        digest = hashlib.sha256(Path(self.regions).read_bytes()).hexdigest() if self.regions else None
        return {
            "model": name,
            "weights": fingerprint_model(embedder.model),
            "protocol": embedder.describe() | {"context": context[0]},
            "tile_side": self.tile_side,
            "overlap": self.overlap,
            "bands": list(self.bands) if self.bands else None,
            "stretch": list(self.stretch) if self.stretch else None,
            "limits": list(self.limits) if self.limits else None,
            "rule": self.rule,
            "regions": digest,
            "buffer": self.buffer,
            "part_size": self.part_size,
        }

    def prepare(self, embedder: Embedder, name: str) -> None:
        """Create the folder and its `scenes.json`, or add scenes to those of an archive that exists.

        One process calls this before any part is written. Incomplete files of a killed process are removed.

        Raises:
            ValueError: if the folder holds an archive that was made in another way, or unrelated files.
        """
        output, description = self.output, self.describe(embedder, name)
        path = output / DESCRIPTION
        before = read_json(path) if path.exists() else description | {"parts": []}
        compared = description.keys() - {
            "model"
        }  # one model can have several names; its weights are compared
        if changed := sorted(key for key in compared if before.get(key) != description[key]):
            raise ValueError(
                f"{output} is an archive of another run: {changed} differ. Give another folder, or delete it."
            )
        output.mkdir(parents=True, exist_ok=True)
        for partial in output.glob(f".*{PARTIAL}"):
            partial.unlink()
        if not path.exists() and (strange := {entry.name for entry in output.iterdir()} - {LOCK_NAME}):
            raise ValueError(
                f"{output} holds no archive, but other files such as {sorted(strange)[0]}. "
                "Give another folder."
            )
        parts = sorted({*before["parts"], *(part.name for part in self.parts)})
        write_json(path, description | {"parts": parts})

    def run(self, embedder: Embedder, name: str, accelerator=None) -> tuple[int, int]:
        """Write the archive: every process writes its part of the files that do not exist yet.

        The main process holds a lock on the folder until all processes have ended. A job that was interrupted
        continues when it is run again.

        Args:
            embedder: a model and its processor.
            name: name of the model, for `scenes.json`.
            accelerator: an `accelerate.Accelerator`, for the number of processes. None is one process.

        Returns:
            See `write`.

        Raises:
            ValueError: see `prepare`.
            RuntimeError: if another job is writing into the folder; the message names its process.
        """
        rank, num_processes = 0, 1
        if accelerator is not None:
            rank, num_processes = accelerator.process_index, accelerator.num_processes
        with lock_folder(self.output) if rank == 0 else nullcontext():
            if rank == 0:
                self.prepare(embedder, name)
            if accelerator is not None:
                accelerator.wait_for_everyone()
            counts = self.write(embedder, rank, num_processes)
            if accelerator is not None:
                accelerator.wait_for_everyone()
        return counts

    def write(self, embedder: Embedder, rank: int = 0, num_processes: int = 1) -> tuple[int, int]:
        """Write the parts of one process that do not exist yet.

        Args:
            embedder: a model and its processor.
            rank: number of this process.
            num_processes: number of processes. Each takes a run of neighbouring parts, since a scene is
                opened once for all its parts.

        Returns:
            The number of parts that were written, and of the tiles and regions without valid ground that they
            lack.
        """
        output = self.output
        first, last = (len(self.parts) * number // num_processes for number in (rank, rank + 1))
        missing = [part for part in self.parts[first:last] if not (output / part.name).exists()]
        total, num_empty = sum(part.count for part in missing), 0
        with logging.tqdm(total=total, desc="tiles and regions", unit=" tiles") as progress:
            for part in missing:
                with no_progress_bars():
                    table = self._embed_part(embedder, part, progress)
                with atomic_file(output / part.name) as file:
                    parquet.write_table(table, file)
                num_empty += part.count - len(table)
        return len(missing), num_empty

    def _embed_part(self, embedder: Embedder, part: Part, progress) -> pyarrow.Table:
        scene, regions = self._open(part.scene)
        places = slice(part.start, part.start + part.count)
        if part.kind == "region":
            assert regions is not None
            chosen = regions.iloc[places]
            embeds, valid_ground = embed_scene_regions(
                embedder, scene, _track(chosen.geometry, progress), self.context
            )
            outlines, numbers = list(chosen.geometry), list(chosen.index)
        else:
            windows = list_windows(scene, self.tile_side, self.overlap)[places]
            embeds, valid_ground = embed_tiles(embedder, scene, _track(windows, progress))
            outlines = [scene.to_ground(shapely.box(*window)) for window in windows]
            numbers = [None] * len(windows)
        kept = np.flatnonzero(valid_ground > 0)
        columns = {
            "scene": str(part.scene),
            "kind": part.kind,
            "region": pandas.array([numbers[i] for i in kept], dtype="Int64"),
            "valid_ground": valid_ground[kept],
        }
        outlines = [outlines[i] for i in kept]
        frame = geopandas.GeoDataFrame(columns, geometry=outlines, crs=scene.crs)
        return make_table(to_wgs84(frame), embeds[kept])


def _track(items: Iterable, progress) -> Iterator:
    for item in items:
        yield item
        progress.update(1)


def embed_tiles(
    embedder: Embedder, scene: Scene, windows: Iterable[tuple]
) -> tuple[torch.Tensor, np.ndarray]:
    """Embed windows of a scene as images.

    Args:
        embedder: a model and its processor.
        scene: the scene.
        windows: N windows, xyxy in pixels of the scene.

    Returns:
        (N, D) unit vectors, zero for a window without valid ground; and (N,), the part of each window that is
        valid ground, in [0, 1].
    """
    size, shares = embedder.image_size, []

    def read_tiles() -> Iterator:
        for ground in read_ahead(lambda window: scene.read(window, (size, size)), windows):
            shares.append(float(ground.valid.mean()))
            if shares[-1]:
                yield ground.image

    embeds = embedder.embed_images(read_tiles())
    valid_ground = np.array(shares)
    result = torch.zeros(len(shares), embeds.shape[1])
    result[torch.from_numpy(valid_ground > 0)] = embeds
    return result, valid_ground


def make_table(frame: geopandas.GeoDataFrame, embeds: torch.Tensor) -> pyarrow.Table:
    """Make the table of a part, with the same types in every part, also in one without rows."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    table = parquet.read_table(file)
    types = {"scene": pyarrow.string(), "kind": pyarrow.string(), "region": pyarrow.int64()}
    types |= {"valid_ground": pyarrow.float64(), "geometry": pyarrow.binary()}
    table = table.cast(pyarrow.schema(list(types.items()), table.schema.metadata))
    values = pyarrow.array(embeds.numpy().ravel(), pyarrow.float32())
    return table.append_column("embed", pyarrow.FixedSizeListArray.from_arrays(values, embeds.shape[1]))
