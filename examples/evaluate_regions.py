"""Score a model on ground-truth boxes: their concepts, their phrases, and their hard negatives.

    python examples/evaluate_regions.py --model outputs/train/final --coco test.json --images images/
    python examples/evaluate_regions.py --model openai/clip-vit-base-patch32 --dataset rows/ \
        --region_sources crop

Takes seconds for hundreds of images; windows and crops take minutes. Prints every score, and writes
`metrics.json` with the protocol of each score and `confusion_<source>.png` for each source of regions.
`--model` is a folder or a Hub repository. `--dataset` is a folder or repository of rows, which may have hard
negatives.
"""

import argparse
from pathlib import Path

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

from geoalign_hf import (
    Embedder,
    EmbeddingDriftEvaluator,
    HardNegativeEvaluator,
    PhraseRetrievalEvaluator,
    RegionClassificationEvaluator,
    from_coco,
)
from geoalign_hf.data.views import REGION_SOURCES
from geoalign_hf.embedding.templates import TEMPLATE_SETS
from geoalign_hf.evaluation.figures import draw_confusion
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.hub.cards import list_numbers, list_tables


def main() -> None:
    """Load, score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--coco", help="COCO annotation file")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--dataset", help="rows: folder or Hub repository, in place of --coco")
    parser.add_argument("--split", default="test", help="of --dataset")
    parser.add_argument(
        "--region_sources",
        nargs="+",
        choices=REGION_SOURCES,
        help="what is encoded; default: the model's own",
    )
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
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)

    # 2. Concepts, phrases and hard negatives, for every source of regions.
    evaluators, folder = {}, arguments.output_dir
    sources = arguments.region_sources or [embedder.resolve_view()[0]]
    for source in sources:
        options = {"region_source": source, "context": arguments.context}
        evaluators[f"concepts, {source}"] = RegionClassificationEvaluator(
            rows, templates=arguments.templates, **options
        )
        evaluators[f"phrases, {source}"] = PhraseRetrievalEvaluator(rows, **options)
        if any(rows["hard_negatives"]):
            evaluators[f"hard negatives, {source}"] = HardNegativeEvaluator(rows, **options)
    if arguments.start:
        start = AutoModel.from_pretrained(arguments.start).to(device)
        phrases = sorted({phrase for of_row in rows["phrases"] for phrase in of_row})
        evaluators["drift"] = EmbeddingDriftEvaluator(rows["image"], phrases, start=start)

    # 3. Scores.
    metrics = {}
    for title, evaluator in evaluators.items():
        if arguments.save_embeds:
            evaluator.arrays_path = folder / f"{title.replace(', ', '_').replace(' ', '_')}.npz"
        metrics[title] = evaluator(embedder)

    # 4. One file, one picture per source, one table.
    write_metrics(folder / "metrics.json", metrics)
    for source in sources:
        scores = metrics[f"concepts, {source}"]
        path = folder / f"confusion_{source}.png"
        draw_confusion(scores["confusion"], scores["protocol"]["concepts"], path)
    for title, scores in metrics.items():
        print(title)
        for name, value in list_numbers(scores).items():
            print(f"  {name:40} {value:.4f}")
        for table in list_tables(scores).values():
            for name, (score, count) in table.items():
                print(f"    {name:38} {score:.4f}   ({count})")


if __name__ == "__main__":
    main()
