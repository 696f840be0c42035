"""Name the scene of every image without training on it, and score the answers.

    python examples/evaluate_scenes.py --model outputs/train/final --folder AID/
    python examples/evaluate_scenes.py --model openai/clip-vit-base-patch32 --dataset user/name --split test \
        --templates clip skyscript overhead

`--folder` holds a folder per concept; `--dataset` is any image dataset. Takes about a minute per thousand
images on a CPU. Prints every score; writes `metrics.json` with the protocol of each, and a confusion matrix
per set of templates. `--renamed` is a JSON file of names that are to be worded otherwise.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.embedding.templates import TEMPLATE_SETS
from geoalign_hf.evaluation.classification import classify_scenes
from geoalign_hf.evaluation.figures import draw_confusion
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.hub.cards import list_numbers, list_tables

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def main() -> None:
    """Load, score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--folder", type=Path, help="holds a folder of images per concept")
    parser.add_argument("--dataset", help="image dataset: folder or Hub repository, in place of --folder")
    parser.add_argument("--split", default="test", help="of --dataset")
    parser.add_argument("--image_column", default="image", help="of --dataset")
    parser.add_argument("--label_column", default="label", help="of --dataset")
    parser.add_argument("--renamed", type=Path, help='JSON file such as {"Parking": "parking lot"}')
    parser.add_argument("--templates", nargs="+", default=["geoalign"], choices=TEMPLATE_SETS)
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluate_scenes"))
    parser.add_argument("--save_embeds", action="store_true", help="also write the embeddings, as npz")
    arguments = parser.parse_args()
    if bool(arguments.folder) == bool(arguments.dataset):
        parser.error("give either --folder or --dataset")

    # 1. Model and images, each with the name of its concept.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    if arguments.folder:
        images = [path for path in sorted(arguments.folder.glob("*/*")) if path.suffix.lower() in SUFFIXES]
        names = [path.parent.name for path in images]
    else:
        dataset = load_dataset(arguments.dataset, split=arguments.split)
        feature = dataset.features[arguments.label_column]
        images, names = dataset[arguments.image_column], list(dataset[arguments.label_column])
        if hasattr(feature, "int2str"):
            names = feature.int2str(names)
    renamed = json.loads(arguments.renamed.read_text(encoding="utf-8")) if arguments.renamed else {}

    # 2. Scores, by every set of templates.
    metrics = {}
    for templates in arguments.templates:
        path = arguments.output_dir / f"scenes_{templates}.npz"
        metrics[f"scenes, {templates}"] = classify_scenes(
            model,
            processor,
            images,
            names,
            templates=templates,
            renamed=renamed,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            embeds_path=path if arguments.save_embeds else None,
        )

    # 3. One file, a picture per set, one table; the table last, for its reader may stop early.
    write_metrics(arguments.output_dir / "metrics.json", metrics)
    for templates in arguments.templates:
        scores = metrics[f"scenes, {templates}"]
        path = arguments.output_dir / f"confusion_{templates}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    for title, scores in metrics.items():
        print(f"{title}: {scores['num_scenes']} images")
        for name, value in list_numbers(scores).items():
            print(f"  {name:24} {value:.4f}")
        for name, (share, count) in list_tables(scores)["concept"].items():
            print(f"    {name:22} {share:.4f}   ({count})")


if __name__ == "__main__":
    main()
