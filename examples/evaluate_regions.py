"""Score the concepts that a model gives to ground-truth boxes.

    python examples/evaluate_regions.py --model outputs/train/final --coco test.json --images images/

Takes seconds for hundreds of images. Prints micro and macro top-1, and the share that is right per concept
and by size of the box; writes `metrics.json` with the protocol. `--model` is a folder or a Hub repository.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.evaluation import REGION_SOURCES, classify_regions
from geoalign_hf.rows import from_coco


def main() -> None:
    """Load, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--coco", required=True, help="COCO annotation file")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--region_source", default="image", choices=REGION_SOURCES, help="what is encoded")
    parser.add_argument(
        "--context", type=float, default=3.0, help="side of a window, in longer sides of its box"
    )
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluate_regions"))
    arguments = parser.parse_args()

    # 1. Model and rows.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    rows = from_coco(arguments.coco, arguments.images)

    # 2. Scores.
    scores = classify_regions(
        model,
        processor,
        rows,
        region_source=arguments.region_source,
        context=arguments.context,
        image_size=arguments.image_size,
    )

    # 3. One table, one file.
    print(f"region top-1 on {scores['num_regions']} boxes of {len(rows)} images")
    print(f"  {'micro':20} {scores['top1_micro']:.4f}\n  {'macro':20} {scores['top1_macro']:.4f}")
    for kind in ("concept", "size"):
        shares = scores["per_concept" if kind == "concept" else "by_size"]
        for name, share in shares.items():
            count = scores["num_per_concept" if kind == "concept" else "num_by_size"][name]
            print(f"  {name:20} {share:.4f}   ({count})")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "metrics.json").write_text(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
