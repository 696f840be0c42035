"""Map where in a large picture phrases are true, and compare the maps with the truth where it is known.

    python examples/localize.py --model outputs/train/final --image harbor.tif --phrases "a ship at a pier"
    python examples/localize.py --model openai/clip-vit-base-patch32 --queries AIR-SLT/annotations.json \
        --images AIR-SLT/imgs

A file of queries is a list in the form of AIR-SLT: `jpg_name`, `caption` and `points`, polygons of corners
x, y. `tile` embeds tiles of three sizes as images, as the benchmark does; `dense` reads the dense map, which
only a GeoAlignCLIP has. About 60 tiles per 1000 x 1000 pixels. Writes `map_<source>_<number>.png`, and where
the truth is known `metrics.json` with Rsu, Ras, Rda and Rmi.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor
from transformers.image_utils import load_image

from geoalign_hf import Embedder, LocalizationEvaluator
from geoalign_hf.evaluation.figures import draw_score_map
from geoalign_hf.evaluation.localization import TILE_SIDES, build_score_maps
from geoalign_hf.evaluation.metrics.localization import FIGURES, normalize_map
from geoalign_hf.evaluation.results import write_metrics


def main() -> None:
    """Load, map, draw, score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--image", type=Path, help="a large picture")
    parser.add_argument("--phrases", nargs="+", default=[], help="what to look for in it")
    parser.add_argument("--queries", type=Path, help="JSON file with a truth, in place of these")
    parser.add_argument("--images", type=Path, help="folder of the pictures of --queries")
    parser.add_argument("--map_sources", nargs="+", default=["tile"], choices=TILE_SIDES)
    parser.add_argument("--stride", type=int, default=4, help="side of a cell of the map, in pixels")
    parser.add_argument("--through_jpeg", action="store_true", help="lose what JPEG loses, as published")
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/localize"))
    arguments = parser.parse_args()
    if bool(arguments.image and arguments.phrases) == bool(arguments.queries and arguments.images):
        parser.error("give either --image and --phrases, or --queries and --images")

    # 1. Model and queries.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    if arguments.queries:
        entries = json.loads(arguments.queries.read_text(encoding="utf-8"))
        queries = [
            {
                "image": arguments.images / entry["jpg_name"],
                "phrase": entry["caption"],
                "polygons": entry["points"],
            }
            for entry in sorted(entries, key=lambda entry: entry["jpg_name"])  # those of one picture together
        ]
    else:
        queries = [{"image": arguments.image, "phrase": phrase} for phrase in arguments.phrases]

    # 2. Maps; where the truth is known, also the four figures.
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)
    maps, metrics = {}, {}
    for source in arguments.map_sources:
        if arguments.queries:
            path = arguments.output_dir / f"maps_{source}.npz"
            evaluator = LocalizationEvaluator(
                queries,
                source,
                stride=arguments.stride,
                through_jpeg=arguments.through_jpeg,
                arrays_path=path,
            )
            metrics[f"localisation, {source}"] = evaluator(embedder)
            maps[source] = list(np.load(path).values())
        else:
            image = load_image(str(arguments.image))
            scores = build_score_maps(embedder, image, arguments.phrases, source, stride=arguments.stride)
            maps[source] = [normalize_map(values, arguments.stride) for values in scores]

    # 3. A picture of every map, one table, one file.
    for source, of_source in maps.items():
        for number, (query, values) in enumerate(zip(queries, of_source, strict=True)):
            path = arguments.output_dir / f"map_{source}_{number}.png"
            image = load_image(str(query["image"]))
            draw_score_map(image, values, query["phrase"], path, query.get("polygons"))
            print(f"{path}: {query['phrase']}")
    for title, scores in metrics.items():
        print(title, ", ".join(f"{name} {scores[name]:.4f}" for name in FIGURES))
    if metrics:
        write_metrics(arguments.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    main()
