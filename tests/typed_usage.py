"""Every public name, used as a reader would. pyright checks this file; tests/test_types.py runs it.

`assert_type` fails where a name is not seen or has become `Any`.
"""

from pathlib import Path
from typing import assert_type

import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo
from PIL import Image

from geoalign_hf import (
    PRESETS,
    Augmentation,
    CaptionRetrievalEvaluator,
    ConceptBank,
    DetectionEvaluator,
    Embedder,
    EmbeddingDriftEvaluator,
    Evaluator,
    GeoAlignCLIPConfig,
    GeoAlignCLIPDetectionPipeline,
    GeoAlignCLIPModel,
    GeoAlignCLIPOutput,
    GeoAlignCLIPProcessor,
    GeoAlignTrainer,
    GeoAlignTrainingArguments,
    HardNegativeEvaluator,
    LocalizationEvaluator,
    LossWeights,
    PhraseRetrievalEvaluator,
    RegionClassificationEvaluator,
    RowCollator,
    SceneClassificationEvaluator,
    StatementChoiceEvaluator,
    ZeroShotRegionClassificationPipeline,
    __version__,
    build_rows,
    compute_losses,
    convert_clip,
    from_coco,
    load_rows,
    push,
)


def convert() -> tuple[GeoAlignCLIPModel, GeoAlignCLIPProcessor]:
    """Convert a CLIP, and save it."""
    model, processor = convert_clip("openai/clip-vit-base-patch16", text_length=248)
    assert_type(model, GeoAlignCLIPModel)
    assert_type(processor, GeoAlignCLIPProcessor)
    model.save_pretrained("converted")
    processor.save_pretrained("converted")
    return model, processor


def embed(model: GeoAlignCLIPModel, processor: GeoAlignCLIPProcessor, image: Image.Image) -> None:
    """Embed images, regions, texts and concepts."""
    config = GeoAlignCLIPConfig(dense_mode="value")
    assert_type(GeoAlignCLIPModel(config).config, GeoAlignCLIPConfig)
    batch = processor(
        images=image, boxes=[[[0, 0, 8, 8]]], text=["a ship"], return_tensors="pt", padding=True
    )
    output: GeoAlignCLIPOutput = model(**batch)
    assert_type(output.image_embeds, torch.Tensor | None)
    assert_type(model.embed_images(batch["pixel_values"]), torch.Tensor)
    assert_type(model.embed_regions(batch["pixel_values"], batch["region_boxes"]), torch.Tensor)
    assert_type(model.embed_text(batch["input_ids"], batch["attention_mask"]), torch.Tensor)

    embedder = Embedder(model, processor, image_size=448, batch_size=8)
    assert_type(embedder.embed_images([image, Path("harbor.png")]), torch.Tensor)
    assert_type(embedder.embed_text(["a ship"]), torch.Tensor)
    bank = ConceptBank.build(model, processor, ["ship", "pier"])
    bank.save("concepts.safetensors")
    assert_type(ConceptBank.load("concepts.safetensors"), ConceptBank)

    classify = ZeroShotRegionClassificationPipeline(model=model, processor=processor)
    print(classify(image, boxes=[[0, 0, 8, 8]], candidate_labels=["ship", "pier"]))
    detect = GeoAlignCLIPDetectionPipeline(model=model, processor=processor)
    print(detect(image, candidate_labels=["ship", "pier"]))


def load() -> Dataset:
    """Load rows in three ways."""
    assert_type(load_rows("outputs/rows", "test"), Dataset | IterableDataset)
    assert_type(from_coco("train.json", "images"), Dataset)
    return build_rows([{"image": "harbor.png", "boxes": [], "phrases": [], "concepts": [], "captions": []}])


def compute(model: GeoAlignCLIPModel, processor: GeoAlignCLIPProcessor, rows: Dataset) -> torch.Tensor:
    """Compute the objective of one batch."""
    weights = PRESETS["fg_clip"]
    assert_type(weights, LossWeights)
    augmentation = Augmentation(light=0.1)
    row = augmentation(rows[0], torch.Generator().manual_seed(0))
    collate = RowCollator(processor, max_regions=8)
    batch = collate([row])
    terms = compute_losses(model(**batch), batch, LossWeights(concept=1.0))
    assert_type(terms, dict[str, torch.Tensor])
    return terms["loss"]


def evaluate(model: GeoAlignCLIPModel, processor: GeoAlignCLIPProcessor, rows: Dataset) -> list[float]:
    """Score a model on every task."""
    evaluators: list[Evaluator] = [
        RegionClassificationEvaluator(rows, templates="skyscript", region_source="window"),
        PhraseRetrievalEvaluator(rows),
        HardNegativeEvaluator(rows),
        CaptionRetrievalEvaluator(rows, captions="unique"),
        SceneClassificationEvaluator(["harbor.png"], ["harbor"], ["harbor", "pier"]),
        StatementChoiceEvaluator([{"image": "a.png", "options": ["a", "b"], "answer": 0, "subject": "s"}]),
        LocalizationEvaluator(
            [{"image": "a.png", "phrase": "a ship", "polygons": [[[0, 0], [8, 0], [8, 8]]]}]
        ),
        EmbeddingDriftEvaluator(["harbor.png"], ["a ship"], start=model),
        DetectionEvaluator(rows, novel=["pier"]),
    ]
    scores = [evaluator(model, processor) for evaluator in evaluators]
    return [result[one.primary_metric] for one, result in zip(evaluators, scores, strict=True)]


def train(model: GeoAlignCLIPModel, processor: GeoAlignCLIPProcessor, rows: Dataset) -> GeoAlignTrainer:
    """Train with the arguments of transformers' Trainer and our own."""
    arguments = GeoAlignTrainingArguments(output_dir="outputs/train", num_train_epochs=5, mini_batch_size=8)
    trainer = GeoAlignTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=LossWeights(concept=1.0),
        evaluators=[RegionClassificationEvaluator(rows)],
        augmentation=Augmentation(),
    )
    trainer.train()
    return trainer


def publish() -> str:
    """Push a folder."""
    commit = push("outputs/train/final", "you/harbors", private=True, tag=f"v{__version__}")
    assert_type(commit, CommitInfo)
    return commit.oid
