"""Score a model on retrieval: find the captions of images, and the images of captions.

    python examples/evaluate_retrieval.py --model outputs/train/final --captions rsicd.json --images images/
    python examples/evaluate_retrieval.py --model openai/clip-vit-base-patch32 --dataset rows/ \
        --protocols all unique

`--captions` is a file in Karpathy's format, as RSICD, RSITMD and UCM have it. The protocol `all` keeps every
caption. `unique` counts equal captions and images once, and puts "a satellite image. " before each caption.
Takes about a minute per thousand images on a CPU. Prints recalls in both directions and their mean, and
writes `metrics.json` with the protocol of each score.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

from geoalign_hf import CaptionRetrievalEvaluator, Embedder, build_rows
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.evaluation.retrieval import CAPTION_PREFIXES
from geoalign_hf.hub.cards import list_numbers


def main() -> None:
    """Load, score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--captions", type=Path, help="JSON file with images[].filename and .sentences[].raw")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument(
        "--dataset", help="with image and captions: folder or Hub repository, in place of these"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--protocols", nargs="+", default=["all"], choices=CAPTION_PREFIXES)
    parser.add_argument("--prefix", help="words before every caption; default: those of the protocol")
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluate_retrieval"))
    parser.add_argument("--save_embeds", action="store_true", help="also write the embeddings, as npz")
    arguments = parser.parse_args()
    if bool(arguments.captions and arguments.images) == bool(arguments.dataset):
        parser.error("give either --captions and --images, or --dataset")

    # 1. Model and rows.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    if arguments.dataset:
        rows = load_dataset(arguments.dataset, split=arguments.split)
    else:
        entries = json.loads(arguments.captions.read_text(encoding="utf-8"))["images"]
        splits = sorted({str(entry.get("split")) for entry in entries})
        if arguments.split not in splits:
            message = f"{arguments.captions} has no split {arguments.split!r}; it has {splits}."
            raise ValueError(f"{message} Choose one of them with --split.")
        rows = build_rows(
            {
                "image": arguments.images / entry["filename"],
                "captions": [sentence["raw"].strip() for sentence in entry["sentences"]],
                "boxes": [],
                "phrases": [],
                "concepts": [],
            }
            for entry in entries
            if entry.get("split") == arguments.split
        )

    # 2. Scores, for every protocol.
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)
    metrics = {}
    for protocol in arguments.protocols:
        path = arguments.output_dir / f"captions_{protocol}.npz" if arguments.save_embeds else None
        evaluator = CaptionRetrievalEvaluator(rows, protocol, prefix=arguments.prefix, arrays_path=path)
        metrics[f"retrieval, {protocol}"] = evaluator(embedder)

    # 3. One file, one table.
    write_metrics(arguments.output_dir / "metrics.json", metrics)
    for title, scores in metrics.items():
        print(f"{title}: {scores['num_images']} images, {scores['num_captions']} captions")
        for name, value in list_numbers(scores).items():
            print(f"  {name:30} {value:.4f}")


if __name__ == "__main__":
    main()
