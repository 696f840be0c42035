"""The whole way in one script: draw scenes, train, evaluate, save, load back, classify, look.

    python examples/quickstart.py

Offline, about three minutes on two cores. Prints the region accuracy of the untrained and of the trained
model and what the pipeline says of an unseen scene; leaves `outputs/quickstart/final/`, a folder that could
be pushed to the Hub as it is, `metrics.json`, and `regions.png` with boxes, concepts and scores.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from toy_rows import CONCEPTS, draw_rows
from transformers import AutoModel, AutoProcessor, pipeline

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.schema import build_rows
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.hub.cards import write_card
from geoalign_hf.losses.objective import PRESETS
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.trainer import GeoAlignTrainer


def draw_result(image: Image.Image, regions: list[list[dict]], zoom: int = 4) -> Image.Image:
    """Write the best concept of every box, with its score, into an enlarged copy of the image."""
    canvas = image.resize((image.width * zoom, image.height * zoom))
    pen = ImageDraw.Draw(canvas)
    for best, *_ in regions:
        x0, y0, x1, y1 = (zoom * number for number in best["box"])
        pen.rectangle((x0, y0, x1, y1), outline="yellow", width=2)
        words = f"{best['label']} {best['score']:.2f}"
        at = (x0, max(y0 - 14, 0))
        pen.rectangle(pen.textbbox(at, words), fill="black")
        pen.text(at, words, fill="yellow")
    return canvas


def main() -> None:
    """Run all steps in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--num_rows", type=int, default=600, help="scenes to train on")
    parser.add_argument("--num_epochs", type=int, default=12)
    arguments = parser.parse_args()

    # 1. Scenes that differ in ground, size, colour and heading; the test scenes come from another seed. Left
    # out are the descriptions, long texts that would take most of the time, and the oriented boxes: here a
    # region is a box.
    less = {"description": None, "quads": []}
    rows = build_rows(row | less for row in draw_rows(arguments.num_rows, seed=0))
    test_rows = build_rows(draw_rows(150, seed=1))

    # 2. A small model with fresh weights, and a tokenizer learnt from the words of the training scenes.
    texts = [text for row in rows.remove_columns("image") for text in [*row["captions"], *row["phrases"]]]
    texts += [template.format(concept) for template in CONCEPT_TEMPLATES for concept in CONCEPTS]
    torch.manual_seed(0)
    model, processor = build_model(texts, image_size=112, patch_size=8, width=64, depth=4)
    evaluate = RegionClassificationEvaluator(test_rows)
    untrained = evaluate(model, processor)

    # 3. Training, evaluation, and a card made of what came out. Many small batches, since steps are what so
    # small a model needs; one core computes, the other prepares rows.
    torch.set_num_threads(1)
    args = GeoAlignTrainingArguments(
        output_dir=str(arguments.output_dir),
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        dataloader_num_workers=1,
        save_strategy="no",
        overwrite_output_dir=True,
    )
    # Two minutes are too few for the other terms: what they ask for comes after telling concepts apart.
    weights = replace(PRESETS["clip"], scene=0.2, region=0.1, concept=1.0)
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=weights,
        augmentation=Augmentation(whole_share=0.4, max_context=4.0, light=0.2),
    )
    trainer.train()
    folder = arguments.output_dir / "final"
    trained = evaluate(model, processor)
    for name, scores in (("untrained", untrained), ("trained", trained)):
        print(
            f"{name:>10}: region top-1 micro {scores['top1_micro']:.3f}, macro {scores['top1_macro']:.3f} "
            f"on {scores['num_regions']} boxes of {len(test_rows)} unseen scenes"
        )
    metrics = {"untrained": untrained, "image": trained}
    (arguments.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))
    write_card(folder, metrics, json.loads((arguments.output_dir / "args.json").read_text()))

    # 4. Back from the folder, as anyone would load it from the Hub.
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    classify = pipeline("zero-shot-region-classification", model=model, processor=processor)
    scene = draw_rows(1, seed=2)[0]
    regions = classify(scene["image"], boxes=scene["boxes"], candidate_concepts=list(CONCEPTS), top_k=2)

    # 5. What it says, beside what is there.
    for region, phrase in zip(regions, scene["phrases"], strict=True):
        said = ", ".join(f"{answer['label']} {answer['score']:.2f}" for answer in region)
        print(f"{phrase:>28}: {said}")
    draw_result(scene["image"], regions).save(arguments.output_dir / "regions.png")
    print(f"see {arguments.output_dir / 'regions.png'} and {folder}")


if __name__ == "__main__":
    main()
