"""`geoalign-hf scene`: georeferenced scenes of any size, read in windows."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pandas
from accelerate import Accelerator, InitProcessGroupKwargs
from transformers.utils import logging

from ..detection.detector import DetectionOptions, Detector
from ..embedding.checkpoints import load_processor
from ..embedding.embedder import Embedder
from ..embedding.templates import resolve_templates
from ..options import option
from ..scenes.archive import SceneJob, list_scenes
from ..scenes.classify import classify_scene_regions, list_columns
from ..scenes.detect import NEW_COLUMNS, detect_in_scene
from ..scenes.reader import Scene
from ..scenes.regions import check_columns, check_suffix, find_center, read_regions, write_regions
from ..scenes.score import (
    COSINE_LIMITS,
    PROBABILITY_LIMITS,
    check_map_options,
    find_cell,
    score_scene,
    write_score_maps,
)
from ..scenes.search import check_model, read_description, search_archive
from ..training.launch import check_processes
from .detect import LabelOptions
from .inputs import MODEL, ModelOptions, check_model_exists, check_search, load_model

ARCHIVE = "outputs/archive"


@dataclass
class PixelOptions:
    """How the pixels of a scene become 8-bit RGB."""

    _argument_group_name = "pixels"

    bands: tuple[int, ...] | None = option(
        default=None,
        help="Numbers of the bands for red, green and blue, such as 3,2,1, or of one band for grey. By "
        "default, those that the file declares.",
    )
    stretch: tuple[float, float] | None = option(
        default=None,
        help="Percentiles of the whole scene that become black and white, such as 2,98. By default, 8-bit "
        "pixels are kept, and others are scaled by the rule of the model, or by 2,98.",
    )
    limits: tuple[float, float] | None = option(
        default=None, help="Values that become black and white, such as 0,3000, instead of --stretch."
    )

    def open(self, path: str, model: str) -> Scene:
        """Open a scene, before the model is loaded."""
        return Scene(path, self.bands, self.stretch, self.limits, read_rule(model))


def read_rule(model: str) -> dict | None:
    """Read the rule by which the images were read that a model was trained on."""
    check_model_exists(model)
    return getattr(load_processor(model), "image_rule", None)


@dataclass
class RegionOptions:
    """How regions of a vector file are placed and viewed."""

    _argument_group_name = "regions"

    buffer: float | None = option(
        default=None, help="Radius in metres of the disc that a point or a line becomes."
    )
    context: float | None = option(
        default=None,
        help="Side of the window around a region, in multiples of the longer side of its box. By default, "
        "the one that the model was trained for.",
    )

    def check(self, source: str | None, name: str) -> None:
        """Check the buffer.

        Args:
            source: Vector file whose points and lines it applies to, or None.
            name: Option of that file.

        Raises:
            ValueError: If there is a buffer without a file.
        """
        if self.buffer is not None and source is None:
            raise ValueError(f"--buffer has no effect without {name}. Add {name}, or omit it.")


@dataclass
class SceneScoreOptions:
    """The scene, the texts, and how maps are made."""

    _positional = ("scene", "queries")

    scene: str = option(help="Raster file with coordinates, such as a GeoTIFF.")
    queries: list[str] = option(help="Texts to map. Each has a map of its own.")
    background: list[str] = option(
        default_factory=list,
        help="Texts that describe everything else. With them, a score is the probability of a query among "
        "itself and these texts, instead of a cosine.",
    )
    scale: float = option(
        default=1.0,
        help="Pixels of the scene per pixel of the model's input. Above 1, the scene is shrunk.",
    )
    overlap: float = option(default=0.5, help="Part of a tile's side that it shares with the next tile.")
    colour_limits: tuple[float, float] | None = option(
        default=None,
        help="Scores at the ends of the colour scale, such as 0.1,0.4. By default, 0,0.5 for cosines and 0,1 "
        "for probabilities, so that the pictures of all scenes can be compared.",
    )
    output_dir: str = option(
        default="outputs/scene_score", help="Folder of a GeoTIFF and a picture for each query."
    )


def scene_score(options: SceneScoreOptions, pixel_options: PixelOptions, model_options: ModelOptions) -> Path:
    """Map how similar the places of a georeferenced scene are to texts, as GeoTIFFs and pictures."""
    label, limits = ("probability", PROBABILITY_LIMITS) if options.background else ("cosine", COSINE_LIMITS)
    limits = options.colour_limits or limits
    check_map_options(options.queries, options.scale, options.overlap, limits)
    scene = pixel_options.open(options.scene, model_options.model)
    embedder = model_options.load()
    maps = score_scene(embedder, scene, options.queries, options.scale, options.overlap, options.background)
    protocol = {"model": model_options.model, "background": options.background}
    protocol |= {"scale": options.scale, "overlap": options.overlap}
    protocol |= scene.describe() | embedder.describe()
    tags = {"protocol": json.dumps(protocol)}
    cell = find_cell(embedder, options.scale)
    output_dir = Path(options.output_dir)
    paths = write_score_maps(maps, options.queries, scene, cell, output_dir, limits, label, tags)
    for path, query in zip(paths, options.queries, strict=True):
        print(f"{path}: {query}")
    return output_dir


@dataclass
class SceneClassifyOptions:
    """The regions of a scene, and the concepts to choose from."""

    _positional = ("scene", "regions")

    scene: str = option(help="Raster file with coordinates, such as a GeoTIFF.")
    regions: str = option(
        help="Vector file of regions in any reference system (GeoJSON, GeoPackage), or a COCO .json file of "
        "boxes in pixels of the scene."
    )
    concepts: list[str] = option(help="Concepts to choose from.")
    templates: Literal["geoalign", "clip", "skyscript", "overhead"] = option(
        default="geoalign", help="Template set that concepts are put into."
    )
    output: str = option(
        default="outputs/scene_classify.geojson",
        help="File of the named regions: .geojson (WGS 84) or .gpkg (reference system of the scene).",
    )


def scene_classify(
    options: SceneClassifyOptions,
    region_options: RegionOptions,
    pixel_options: PixelOptions,
    model_options: ModelOptions,
) -> Path:
    """Name the regions of a vector file in a georeferenced scene."""
    check_suffix(options.output)
    templates = resolve_templates(options.templates)
    scene = pixel_options.open(options.scene, model_options.model)
    regions = read_regions(options.regions, scene, region_options.buffer)
    check_columns(options.output, [*regions.columns, *list_columns(options.concepts)])
    named = classify_scene_regions(
        model_options.load(), scene, regions, options.concepts, templates, region_options.context
    )
    write_regions(named, options.output)
    for concept, count in Counter(named["concept"].dropna()).most_common():
        print(f"{concept}: {count}")
    if num_empty := int((named["valid_ground"] == 0).sum()):
        print(f"{num_empty} of {len(named)} regions have no valid ground in the scene, and so no concept")
    return Path(options.output)


@dataclass(frozen=True)
class SceneDetectionOptions(DetectionOptions):
    """How proposals are scored and chosen. A scene holds more objects than an image."""

    proposer: Literal["grid"] = option(
        default="grid", help="Source of proposals if there is no file of them. A scene has only the grid."
    )
    sides: list[float] | None = option(
        default=None,
        help="Sides of the grid's windows, in pixels of the scene. Required without --proposals.",
    )
    top_k: int = option(default=10_000, help="Largest number of detections in the scene.")


@dataclass
class SceneDetectOptions:
    """The scene and its proposals."""

    _positional = ("scene",)

    scene: str = option(help="Raster file with coordinates, such as a GeoTIFF.")
    proposals: str | None = option(
        default=None,
        help="File of regions that may be objects: GeoJSON or GeoPackage, whose column objectness, from 0 to "
        "1, is used if there is one, or COCO results in pixels. By default, windows of a grid.",
    )
    output: str = option(
        default="outputs/scene_detect.geojson",
        help="File of the detections: .geojson (WGS 84) or .gpkg (reference system of the scene).",
    )


def scene_detect(
    options: SceneDetectOptions,
    label_options: LabelOptions,
    region_options: RegionOptions,
    detection: SceneDetectionOptions,
    pixel_options: PixelOptions,
    model_options: ModelOptions,
) -> Path:
    """Detect objects in a georeferenced scene: name proposals, or windows of a grid, with labels."""
    synonyms = label_options.read_synonyms()
    check_suffix(options.output)
    region_options.check(options.proposals, "--proposals")
    scene = pixel_options.open(options.scene, model_options.model)
    proposals = None
    if options.proposals:
        proposals = read_regions(options.proposals, scene, region_options.buffer)
        check_columns(options.output, [*proposals.columns, *NEW_COLUMNS])
    detector = Detector(model_options.load(), label_options.labels, detection, synonyms)
    found = detect_in_scene(detector, scene, proposals, region_options.context)
    write_regions(found, options.output)
    label_options.print_counts(found["label"])
    return Path(options.output)


@dataclass
class SceneEmbedOptions:
    """The scenes, and the archive that they become."""

    _positional = ("scenes",)

    scenes: list[str] = option(help="Raster files with coordinates, or folders that are searched for them.")
    tile_side: int | None = option(
        default=None, help="Side of a tile, in pixels of the scene. By default, that of the model's input."
    )
    overlap: float = option(default=0.0, help="Part of a tile's side that it shares with the next tile.")
    regions: str | None = option(
        default=None,
        help="Vector file of regions to embed as well, or a COCO .json file of boxes in pixels of scenes.",
    )
    part_size: int = option(
        default=1024,
        help="Number of tiles or regions per file. Every process needs at least one file to have work.",
    )
    output_dir: str = option(default=ARCHIVE, help="Folder of the archive.")


def scene_embed(
    options: SceneEmbedOptions,
    region_options: RegionOptions,
    pixel_options: PixelOptions,
    model_options: ModelOptions,
) -> Path | None:
    """Embed the tiles and regions of georeferenced scenes into an archive of GeoParquet files.

    Start it with `accelerate launch -m geoalign_hf scene embed ...` to use several GPUs. A run that was
    interrupted continues when the same command is given again. More scenes can be added later.
    """
    # A process that has ended waits for the others, which may take hours.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    check_processes(num_processes)
    if not accelerator.is_main_process:
        logging.disable_progress_bar()
    region_options.check(options.regions, "--regions")
    scenes = list_scenes(options.scenes)
    embedder = model_options.load()
    job = SceneJob(
        scenes,
        options.output_dir,
        embedder.image_size if options.tile_side is None else options.tile_side,
        options.overlap,
        pixel_options.bands,
        pixel_options.stretch,
        pixel_options.limits,
        read_rule(model_options.model),
        options.regions,
        region_options.buffer,
        region_options.context,
        options.part_size,
    )
    num_parts, num_empty = job.run(embedder, model_options.model, accelerator)
    print(
        f"process {rank} of {num_processes}: wrote {num_parts} of {len(job.parts)} files; {num_empty} of "
        "their tiles and regions have no valid ground"
    )
    return job.output if accelerator.is_main_process else None


@dataclass
class SceneSearchOptions:
    """What is searched for, and where."""

    _positional = ("query",)

    query: list[str] = option(default_factory=list, help="Texts to search for.")
    image: list[str] = option(default_factory=list, help="Image files to find similar places for.")
    archive: str = option(default=ARCHIVE, help="Folder that geoalign-hf scene embed has written.")
    model: str = option(default=MODEL, help="Folder or Hub repository of the model that made the archive.")
    kind: Literal["tile", "region"] | None = option(
        default=None, help="Kind of the places: tiles or regions. By default, both."
    )
    top_k: int = option(default=10, help="Number of places per query.")
    output: str = option(
        default="outputs/scene_search.geojson", help="File of the places: .geojson or .gpkg, in WGS 84."
    )


def scene_search(options: SceneSearchOptions) -> Path:
    """Search an archive of scenes for the places that are most similar to a text or an image."""
    check_search(options.query, options.image, options.top_k)
    check_suffix(options.output)
    description = read_description(options.archive)
    model, processor = load_model(options.model)
    check_model(options.archive, model)
    embedder = Embedder(model, processor, description["protocol"]["image_size"])
    embeds = [*embedder.embed_text(options.query), *embedder.embed_images(options.image)]
    answers = []
    for name, embed in zip([*options.query, *options.image], embeds, strict=True):
        found = search_archive(options.archive, embed, options.top_k, options.kind)
        print(f"{name}:")
        for place in found.itertuples():
            center = find_center(place.geometry)
            kind = place.kind if pandas.isna(place.region) else f"region {place.region}"
            print(f"  {center.y:.6f} {center.x:.6f} {place.scene} {kind} {place.cosine:.4f}")
        found.insert(0, "query", name)
        answers.append(found)
    write_regions(pandas.concat(answers, ignore_index=True), options.output)
    return Path(options.output)
