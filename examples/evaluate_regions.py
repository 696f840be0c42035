"""Score what a model says of ground-truth boxes: their concepts, their phrases, and nearly right phrases.

    python examples/evaluate_regions.py --model outputs/train/final --coco test.json --images images/
    python examples/evaluate_regions.py --model openai/clip-vit-base-patch32 --dataset rows/ \
        --region_sources crop

Takes seconds for hundreds of images, for windows and crops minutes. Prints every score; writes `metrics.json`
with the protocol of each, and for each source of regions `confusion_<source>.png`. `--model` is a folder or a
Hub repository; `--dataset` a folder or repository of rows, which may hold hard negatives.
"""

import argparse
from pathlib import Path

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.views import REGION_SOURCES
from geoalign_hf.embedding.templates import TEMPLATE_SETS
from geoalign_hf.evaluation.classification import classify_regions
from geoalign_hf.evaluation.drift import guard_embeddings
from geoalign_hf.evaluation.figures import draw_confusion
from geoalign_hf.evaluation.phrases import evaluate_phrase_choice
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.evaluation.retrieval import retrieve_phrases
from geoalign_hf.hub.cards import list_numbers, list_tables


def main() -> None:
    """Load, score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--coco", help="COCO annotation file")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--dataset", help="rows: folder or Hub repository, in place of --coco")
    parser.add_argument("--split", default="test", help="of --dataset")
    parser.add_argument("--region_sources", nargs="+", default=["image"], choices=REGION_SOURCES)
    parser.add_argument("--context", type=float, help="side of windows and crops, in longer sides of the box")
    parser.add_argument("--templates", default="geoalign", choices=TEMPLATE_SETS)
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--start", help="the model that training started from, to measure the drift from it")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluate_regions"))
    parser.add_argument("--save_embeds", action="store_true", help="also write the embeddings, as npz")
    arguments = parser.parse_args()
    if bool(arguments.coco and arguments.images) == bool(arguments.dataset):
        parser.error("give either --coco and --images, or --dataset")

    # 1. Model and rows.
    device = PartialState().device
    model = AutoModel.from_pretrained(arguments.model).to(device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    if arguments.dataset:
        rows = load_dataset(arguments.dataset, split=arguments.split)
    else:
        rows = from_coco(arguments.coco, arguments.images)
    options = {"image_size": arguments.image_size, "batch_size": arguments.batch_size}

    # 2. Concepts, phrases, and phrases that are nearly right, by every source of regions.
    tasks = {"concepts": classify_regions, "phrases": retrieve_phrases}
    if any(rows["hard_negatives"]):
        tasks["hard negatives"] = evaluate_phrase_choice
    metrics = {}
    for source in arguments.region_sources:
        for name, task in tasks.items():
            path = arguments.output_dir / f"{name.replace(' ', '_')}_{source}.npz"
            metrics[f"{name}, {source}"] = task(
                model,
                processor,
                rows,
                region_source=source,
                context=arguments.context,
                embeds_path=path if arguments.save_embeds else None,
                **options | ({"templates": arguments.templates} if name == "concepts" else {}),
            )

    # 3. What training may have broken.
    if arguments.start:
        start = AutoModel.from_pretrained(arguments.start).to(device)
        phrases = sorted({phrase for of_row in rows["phrases"] for phrase in of_row})
        metrics["guards"] = guard_embeddings(model, processor, rows["image"], phrases, start, **options)

    # 4. One file, a picture per source, one table; the table last, for its reader may stop early.
    write_metrics(arguments.output_dir / "metrics.json", metrics)
    for source in arguments.region_sources:
        scores = metrics[f"concepts, {source}"]
        path = arguments.output_dir / f"confusion_{source}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    for title, scores in metrics.items():
        print(title)
        for name, value in list_numbers(scores).items():
            print(f"  {name:40} {value:.4f}")
        for table in list_tables(scores).values():
            for name, (share, count) in table.items():
                print(f"    {name:38} {share:.4f}   ({count})")


if __name__ == "__main__":
    main()
