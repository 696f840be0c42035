"""Train a small model on generated scenes, evaluate it, and use it through the pipeline.

    python examples/quickstart.py

Runs offline, in two to six minutes on two cores. Prints how many boxes of unseen scenes are named
correctly, and leaves in `outputs/quickstart/`: `final/`, a model folder that could be pushed to the Hub,
`curves.png`, `quickstart.json` with the numbers, `scene.png`, an unseen scene to try the model on, and
`quickstart.png`, a picture of what the model says.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from quickstart_picture import draw_picture
from toy_rows import CONCEPTS, OTHER_WORDS, draw_rows
from transformers import AutoModel, AutoProcessor, pipeline

from geoalign_hf import (
    Augmentation,
    Embedder,
    GeoAlignTrainer,
    GeoAlignTrainingArguments,
    HardNegativeEvaluator,
    LossWeights,
    PhraseRetrievalEvaluator,
    RegionClassificationEvaluator,
    build_rows,
)
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.storage import write_json


def main() -> None:
    """Draw scenes, train, evaluate, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="output folder")
    parser.add_argument("--num_rows", type=int, default=600, help="number of scenes to train on")
    parser.add_argument("--max_steps", type=int, default=1000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of training scenes, weights and training")
    arguments = parser.parse_args()
    folder = arguments.output_dir

    # 1. Scenes with boxes, phrases, concepts and hard negatives. The test scenes have another seed.
    drawn = draw_rows(arguments.num_rows, seed=1000 + arguments.seed)
    rows, unseen = build_rows(row | {"quads": []} for row in drawn), draw_rows(150, seed=1)
    test_rows = build_rows(unseen)

    # 2. A small model with fresh weights, which looks at each region in a window around it.
    texts = [text for row in drawn for text in [*row["captions"], row["description"], *row["phrases"]]]
    texts += [template.format(concept) for template in CONCEPT_TEMPLATES for concept in CONCEPTS]
    torch.manual_seed(arguments.seed)
    model, processor = build_model(
        texts, image_size=80, patch_size=16, width=128, depth=3, stem="convolution"
    )

    # 3. Training. The evaluators run before and after it; the model card shows their results.
    evaluators = [kind(test_rows) for kind in (RegionClassificationEvaluator, HardNegativeEvaluator)]
    args = GeoAlignTrainingArguments(
        output_dir=str(folder),
        overwrite_output_dir=True,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        ema_decay=0.99,
        max_negatives=2,
        eval_strategy="steps",
        eval_steps=arguments.max_steps,
        save_strategy="no",
        use_cpu=True,
        dataloader_num_workers=1,
        seed=arguments.seed,
    )
    unpublished = {"repo_id": None, "license": None}
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=LossWeights(scene=0.3, region=0.5, hard_negative=0.5, image_consistency=0.02),
        evaluators=[*evaluators, PhraseRetrievalEvaluator(test_rows)],
        augmentation=Augmentation(
            whole_share=0.1,
            min_context=1.1,
            max_context=2.0,
            light=0.15,
            min_visible=0.9,
            views_per_row=80,
        ),
        card_settings={
            "data": {"name": f"{len(rows)} generated scenes", "concepts": list(CONCEPTS)} | unpublished,
            "evaluation_data": {"name": f"{len(unseen)} other generated scenes"} | unpublished,
        },
    )
    trainer.train()
    start, final = trainer.scores["start"], trainer.scores["final"]

    # 4. Loaded from its folder, as anyone would load it from the Hub.
    model = AutoModel.from_pretrained(folder / "final")
    processor = AutoProcessor.from_pretrained(folder / "final")
    classify = pipeline("zero-shot-region-classification", model=model, processor=processor)
    images, boxes = [row["image"] for row in unseen], [row["boxes"] for row in unseen]
    answers = classify(images, boxes=boxes, candidate_labels=list(CONCEPTS), top_k=1)
    said = [best["label"] for scene in answers for (best,) in scene]
    concepts = [concept for row in unseen for concept in row["concepts"]]

    # 5. Labels that training never used as concepts: the model knows them from phrases alone.
    renamed = [row | {"concepts": [OTHER_WORDS[name] for name in row["concepts"]]} for row in unseen]
    other_words = RegionClassificationEvaluator(build_rows(renamed))(model, processor)
    phrases = final["phrase_retrieval"]
    results = {
        "boxes named, always the commonest concept": Counter(concepts).most_common(1)[0][1] / len(concepts),
        "boxes named, before training": start["regions"]["top1_micro"],
        "boxes named, after training": final["regions"]["top1_micro"],
        "boxes named, by the pipeline": sum(map(str.__eq__, said, concepts)) / len(concepts),
        "boxes named, in other words (plane, vessel, ...)": other_words["top1_micro"],
        "phrases located among the boxes, by chance": phrases["chance_phrase_to_region_in_image"],
        "phrases located among the boxes": phrases["phrase_to_region_in_image"],
        "phrases told from hard negatives": final["hard_negatives"]["accuracy"],
    }
    for name, fraction in results.items():
        print(f"{name:>50}: {100 * fraction:5.1f} %")
    scenes = draw_rows(60, seed=2)
    scenes[7]["image"].save(folder / "scene.png")
    right = draw_picture(folder, classify, Embedder(model, processor), scenes)
    write_json(folder / "quickstart.json", {"results": results, "picture": right})
    print(f"See {folder / 'quickstart.png'}. The model is in {folder / 'final'}.")


if __name__ == "__main__":
    main()
