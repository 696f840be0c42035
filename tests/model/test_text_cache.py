"""Embeddings of texts that are kept from call to call, by `cache_texts` and by the pipelines."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import pipeline

from geoalign_hf import GeoAlignCLIPDetectionPipeline

TASK = "zero-shot-region-classification"
CONCEPTS = ["airplane", "ship", "storage tank"]


def test_concepts_are_embedded_once_for_all_images_and_calls(folder, toy_rows, monkeypatch):
    classify, calls = pipeline(TASK, model=str(folder)), []
    embed_concepts = type(classify.model).embed_concepts

    def count(self, *args, **kwargs):
        calls.append(kwargs["input_ids"].shape)
        return embed_concepts(self, *args, **kwargs)

    monkeypatch.setattr(type(classify.model), "embed_concepts", count)
    images, boxes = [row["image"] for row in toy_rows], [row["boxes"] for row in toy_rows]
    for _ in range(2):
        classify(images, boxes=boxes, candidate_concepts=["pier", "road"])
    assert [shape[0] for shape in calls] == [2]


def test_cached_texts_give_the_same_answers_and_are_encoded_once(folder, toy_rows, monkeypatch):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    images, model = [row["image"] for row in toy_rows[:3]], classify.model
    expected = [classify(images, candidate_labels=labels) for labels in (CONCEPTS, ["road", "ship"])]
    calls, encode = [], model.get_text_features

    def count(*args, **kwargs):
        calls.append(args)
        return encode(*args, **kwargs)

    monkeypatch.setattr(model, "get_text_features", count)
    model.cache_texts()
    assert [classify(images, candidate_labels=labels) for labels in (CONCEPTS, ["road", "ship"])] == expected
    assert len(calls) == 2
    model.cache_texts(False)
    classify(images, candidate_labels=CONCEPTS)
    assert len(calls) == 5


def test_cached_texts_do_not_outlive_a_call_with_gradients(model, processor):
    inputs = processor(images=Image.new("RGB", (64, 64)), text=["a ship"], return_tensors="pt")
    model.cache_texts()
    with torch.no_grad():
        before = model(**inputs).text_embeds
    model(**inputs)
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            parameter.mul_(1.1)
        after = model(**inputs).text_embeds
    assert not torch.allclose(before, after)


CHANGES = {
    "a training step": lambda model: step(model, torch.optim.AdamW(list_text_weights(model), lr=0.1)),
    "a fused step": lambda model: step(model, torch.optim.AdamW(list_text_weights(model), 0.1, fused=True)),
    "a state dict": lambda model: model.load_state_dict(shake(model)),
    "an assigned state dict": lambda model: model.load_state_dict(shake(model), assign=True),
    "a write through .data": lambda model: [p.data.mul_(1.5) for p in list_text_weights(model)],
    "one weight": lambda model: torch.nn.init.normal_(model.text_projection.weight),
    "another type": lambda model: model.to(torch.bfloat16),
    "an adapter": lambda model: add_adapter(model, "other"),
    "another adapter": lambda model: [layer.set_adapter("second") for layer in list_adapted(model)],
    "no adapter": lambda model: [layer.enable_adapters(False) for layer in list_adapted(model)],
    "a merged adapter": lambda model: [
        layer.merge(adapter_names=["first", "second"]) for layer in list_adapted(model)
    ],
}


def list_text_weights(model) -> list[torch.nn.Parameter]:
    return [*model.text_model.parameters(), *model.text_projection.parameters()]


def step(model, optimizer):
    for parameter in list_text_weights(model):
        parameter.requires_grad_(True).grad = torch.randn_like(parameter)
    optimizer.step()


def shake(model) -> dict:
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) if "text" in name else value
        for name, value in model.state_dict().items()
    }


def add_adapter(model, name: str):
    config = LoraConfig(r=2, target_modules=r".*text_model.*q_proj", init_lora_weights=False)
    inject_adapter_in_model(config, model, name)  # as transformers does, in any version of PEFT


def list_adapted(model) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@pytest.mark.parametrize(
    ("change", "is_inference"),
    [
        (change, is_inference)
        for change in CHANGES
        for is_inference in (False, True)
        if not (is_inference and ("step" in change or "adapter" in change))  # which cannot be trained
    ],
)
def test_kept_embeddings_of_texts_do_not_outlive_their_weights(
    model, processor, toy_rows, change, is_inference
):
    """Of the region and the detection pipeline, and of `cache_texts`."""
    row = toy_rows[0]
    with torch.inference_mode(is_inference):
        if is_inference:
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        if change in ("another adapter", "no adapter", "a merged adapter"):
            for name in ("second", "first"):
                add_adapter(model, name)
            for layer in list_adapted(model):
                layer.set_adapter("first")

    model.cache_texts()
    texts = processor(text=["a ship", "a road"], return_tensors="pt", padding=True)
    regions = {"boxes": row["boxes"], "candidate_labels": CONCEPTS}

    def ask(classify, detect) -> list:
        with torch.no_grad():
            text_embeds = model(**texts).text_embeds
        boxes = {key: row[key] for key in ("image", "boxes")}
        return [
            classify(row["image"], **regions),
            detect(boxes, candidate_labels=CONCEPTS, threshold=0, max_iou=1),
            text_embeds.tolist(),
        ]

    def make_pipelines():
        model.eval()
        return (
            pipeline(TASK, model=model, processor=processor),
            GeoAlignCLIPDetectionPipeline(model=model, processor=processor),
        )

    pipelines = make_pipelines()
    before = ask(*pipelines)
    assert ask(*pipelines) == before
    with torch.inference_mode(is_inference):
        CHANGES[change](model)
    after = ask(*pipelines)
    model.cache_texts()
    assert after == ask(*make_pipelines())
    assert all(new != old for new, old in zip(after, before, strict=True))
