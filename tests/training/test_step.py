"""Laws of a step: one call per modality, targets that take no gradient, teachers that are what they say."""

import copy

import pytest
import torch
from accelerate import Accelerator
from runs import EVERY_COLUMN

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.objective import PRESETS, LossWeights
from geoalign_hf.training.step import compute_gradients, encode_batch, split_batch
from geoalign_hf.training.teacher import Teacher


@pytest.fixture
def batch(processor, toy_rows):
    rows = [row | {"crops": list(range(min(2, len(row["boxes"]))))} for row in toy_rows]
    return RowCollator(processor, 6)(rows)


def count_calls(model) -> dict[str, int]:
    """Count the passes through each tower that keep a graph, and those that do not."""
    calls = {}
    for name in ("vision_model", "text_model"):

        def count(*_, name=name):
            key = f"{name}, {'with' if torch.is_grad_enabled() else 'without'} gradient"
            calls[key] = calls.get(key, 0) + 1

        getattr(model, name).register_forward_pre_hook(count)
    return calls


def collect_grads(model) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad]
    )


def test_crops_beside_the_images_are_embedded_as_if_alone(model, batch):
    together = encode_batch(model, batch, with_crops=True)
    without = encode_batch(model, batch)
    assert without.keys() == together.keys() - {"crop_embeds", "target_embeds"}
    for name, embeds in without.items():
        torch.testing.assert_close(together[name], embeds)
    alone = model(pixel_values=batch["crop_values"], region_quads=batch["crop_quads"])
    torch.testing.assert_close(together["crop_embeds"], alone.image_embeds)
    torch.testing.assert_close(together["target_embeds"], alone.region_embeds[:, 0].detach())
    assert together["crop_embeds"].requires_grad and not together["target_embeds"].requires_grad


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (PRESETS["clip"], {"vision_model, with gradient": 1, "text_model, with gradient": 1}),
        # Crops that are mere targets: a pass of their own, which keeps nothing.
        (
            EVERY_COLUMN,
            {
                "vision_model, with gradient": 1,
                "text_model, with gradient": 1,
                "vision_model, without gradient": 1,
            },
        ),
        # Crops that are trained on: with the images, and targets from the same pass.
        (PRESETS["far_slip"], {"vision_model, with gradient": 1, "text_model, with gradient": 1}),
    ],
)
def test_each_modality_is_encoded_once_with_gradient(model, batch, weights, expected):
    calls = count_calls(model)
    teacher = Teacher("self", model, 0.0)
    compute_gradients(Accelerator(), model, batch, weights, teacher)
    assert calls == expected


@pytest.mark.parametrize("weights", [EVERY_COLUMN, PRESETS["far_slip"]], ids=["full", "far_slip"])
@pytest.mark.parametrize("kind", ["self", "ema", "frozen"])
def test_mini_batches_give_the_gradient_of_the_batch_with_every_teacher(model, batch, weights, kind):
    teacher = Teacher(kind, model, 0.5)
    grads = []
    for mini_batch_size in (None, 3):
        model.zero_grad()
        compute_gradients(Accelerator(), model, batch, weights, teacher, mini_batch_size)
        grads.append(collect_grads(model))
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[0].norm()


def test_a_target_takes_no_gradient(model, batch):
    """The gradient is that of fixed targets, whoever gives them."""
    weights = LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0) | {"crop_consistency": 1.0})
    grads = []
    for kind in ("self", "frozen"):  # at the start both give the same targets
        model.zero_grad()
        compute_gradients(Accelerator(), model, batch, weights, Teacher(kind, model, 0.0))
        grads.append(collect_grads(model))
    assert torch.equal(grads[0], grads[1]) and grads[0].norm() > 0


def test_targets_know_no_dropout_and_leave_the_model_in_training(model, batch):
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    teacher = Teacher("self", model, 0.0)
    model.train()
    first, second = teacher.embed_crops(model, batch), teacher.embed_crops(model, batch)
    assert torch.equal(first, second) and model.training and not first.requires_grad


def test_the_frozen_teacher_stays_and_the_mean_follows(model, batch):
    frozen, mean = Teacher("frozen", model, 0.9), Teacher("ema", model, 0.9)
    start = copy.deepcopy(model)
    before = frozen.embed_crops(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    frozen.follow(model)
    mean.follow(model)
    assert torch.equal(frozen.embed_crops(model, batch), before)
    for was, now in zip(start.parameters(), mean.copy.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.1 * was.requires_grad)
    assert not any(parameter.requires_grad for parameter in mean.copy.parameters())


def test_a_teacher_is_restored_from_its_state(model, batch):
    teacher = Teacher("ema", model, 0.9)
    state = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        model.visual_projection.weight.zero_()
    teacher.follow(model)
    teacher.load_state_dict(state)
    assert torch.equal(teacher.copy.visual_projection.weight, state["visual_projection.weight"])
    assert Teacher("self", model, 0.0).state_dict() == {}


def test_a_batch_without_crops_has_no_targets(model, processor, toy_rows):
    batch = RowCollator(processor, 6)([row | {"crops": []} for row in toy_rows])
    assert Teacher("self", model, 0.0).embed_crops(model, batch).shape == (0, 32)
    terms = compute_gradients(Accelerator(), model, batch, EVERY_COLUMN, Teacher("self", model, 0.0))
    assert terms["crop_consistency"] == 0


def test_chunks_hold_every_image_region_crop_and_text_once(batch):
    chunks = split_batch(batch, 3)
    for key in ("pixel_values", "region_quads", "region_mask", "input_ids", "crop_values", "crop_index"):
        assert torch.equal(torch.cat([chunk[key] for chunk in chunks]), batch[key]), key
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [2, 3, 3]


def test_losses_are_float32_under_bf16(batch, model):
    accelerator = Accelerator()
    with torch.autocast("cpu", torch.bfloat16):
        terms = compute_gradients(accelerator, model, batch, EVERY_COLUMN, Teacher("self", model, 0.0))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
