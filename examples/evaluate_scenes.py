"""Score a model on zero-shot scene classification.

    python examples/evaluate_scenes.py --model outputs/train/final --folder AID/
    python examples/evaluate_scenes.py --model openai/clip-vit-base-patch32 --dataset user/name --split test \
        --templates clip skyscript overhead

`--folder` has one folder of images per concept. `--dataset` is any image dataset. `--renamed` is a JSON file
with other words for some of the names. Takes about a minute per thousand images on a CPU. Prints every score,
and writes `metrics.json` with the protocol of each score and one confusion matrix per template set.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

from geoalign_hf import Embedder, SceneClassificationEvaluator
from geoalign_hf.embedding.templates import TEMPLATE_SETS
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

    # 2. Scores, for every template set.
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)
    metrics = {}
    for templates in arguments.templates:
        path = arguments.output_dir / f"scenes_{templates}.npz" if arguments.save_embeds else None
        evaluator = SceneClassificationEvaluator(
            images, names, templates=templates, renamed=renamed, arrays_path=path
        )
        metrics[f"scenes, {templates}"] = evaluator(embedder)

    # 3. One file, one picture per template set, one table.
    write_metrics(arguments.output_dir / "metrics.json", metrics)
    for templates in arguments.templates:
        scores = metrics[f"scenes, {templates}"]
        path = arguments.output_dir / f"confusion_{templates}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    for title, scores in metrics.items():
        print(f"{title}: {scores['num_scenes']} images")
        for name, value in list_numbers(scores).items():
            print(f"  {name:24} {value:.4f}")
        for name, (accuracy, count) in list_tables(scores)["concept"].items():
            print(f"    {name:22} {accuracy:.4f}   ({count})")


if __name__ == "__main__":
    main()
