"""Laws of the objective: every term computes what it documents, has its weight, and ignores padding."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.contrastive import contrast_concepts, contrast_pairs, contrast_vocabulary
from geoalign_hf.losses.objective import PRESETS, LossWeights, compute_losses
from geoalign_hf.losses.per_row import align_distributions, contrast_negatives
from geoalign_hf.training.step import encode_batch

TERMS = [term.name for term in fields(LossWeights)]
ALL = LossWeights(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
OFF = LossWeights(**dict.fromkeys(TERMS, 0.0))


def make_case(B=4, R=3, num_real=(3, 1, 0, 2), N=9, T=2, K=2, D=8, dtype=torch.float32, seed=0):
    """Random embeddings, a batch around them and its crops; every leaf can take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        unit = normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
        return unit.to(dtype).requires_grad_()

    def index(*shape):
        return torch.randint(N, shape, generator=generator)

    mask = torch.arange(R) < torch.tensor(num_real).unsqueeze(-1)
    concept_ids = torch.randint(3, (B, R), generator=generator)
    output = SimpleNamespace(
        image_embeds=leaf(B, D),
        text_embeds=leaf(N, D),
        region_embeds=leaf(B, R, D),
        logit_scale=torch.tensor(10.0, dtype=dtype, requires_grad=True),
        region_logit_scale=torch.tensor(5.0, dtype=dtype, requires_grad=True),
    )
    batch = {
        "region_mask": mask,
        "caption_index": index(B),
        "description_index": index(B),
        "phrase_index": index(B, R),
        "concept_index": index(3, T)[concept_ids],  # equal concepts have equal words
        "negative_index": index(B, R, K).masked_fill(~mask.unsqueeze(-1), -100),
        "caption_ids": torch.arange(B),
        "description_ids": torch.arange(B) + 20,
        "phrase_ids": (torch.arange(B * R) + 40).view(B, R).masked_fill(~mask, -100),
        "concept_ids": concept_ids.masked_fill(~mask, -100),
        "crop_index": mask.flatten().nonzero().squeeze(1)[::2],
    }
    Q = len(batch["crop_index"])
    return output, batch, leaf(Q, D), leaf(Q, D).detach()


def collect_grads(output) -> dict:
    return {name: leaf.grad for name, leaf in vars(output).items()}


def test_the_terms_of_equal_embeddings_are_logarithms_of_counts():
    output, batch, crops, targets = make_case(B=4, R=3, num_real=(3, 3, 3, 3))
    for name in ("image_embeds", "text_embeds", "region_embeds"):
        embeds = getattr(output, name)
        setattr(output, name, torch.ones_like(embeds) / embeds.shape[-1] ** 0.5)
    targets = torch.ones_like(targets) / targets.shape[-1] ** 0.5
    batch["concept_ids"] = torch.arange(12).view(4, 3)
    batch["phrase_index"][:] = 0
    batch["negative_index"] = torch.ones(4, 3, 2, dtype=torch.long)
    losses = compute_losses(output, batch, ALL, torch.ones_like(crops) / crops.shape[-1] ** 0.5, targets)
    expected = dict.fromkeys(("scene", "description"), math.log(4))
    expected |= dict.fromkeys(("region", "concept"), math.log(12))
    expected |= {"crop_concept": math.log(6), "hard_negative": math.log(3)}
    expected |= dict.fromkeys(("crop_consistency", "image_consistency", "text_consistency"), 0.0)
    expected["loss"] = sum(getattr(ALL, name) * expected[name] for name in TERMS)
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_terms_use_the_texts_that_the_indices_select():
    output, batch, crops, targets = make_case()
    texts, mask = output.text_embeds, batch["phrase_ids"] >= 0
    losses = compute_losses(output, batch, ALL, crops, targets)
    regions, phrases = output.region_embeds[mask], texts[batch["phrase_index"][mask]]
    concepts, concept_ids = (
        normalize(texts[batch["concept_index"][mask]].mean(dim=1), dim=-1),
        batch["concept_ids"][mask],
    )
    captions, descriptions = texts[batch["caption_index"]], texts[batch["description_index"]]
    cropped = output.region_embeds.flatten(0, 1)[batch["crop_index"]]
    concept_of_crop = normalize(
        texts[batch["concept_index"].flatten(0, 1)[batch["crop_index"]]].mean(1), dim=-1
    )
    means, sums = [], []
    for i in range(4):
        means.append(normalize(output.region_embeds[i][mask[i]].sum(0), dim=-1))
        of_image = batch["concept_index"][i][mask[i]]
        parts = [captions[i], *texts[batch["phrase_index"][i][mask[i]]]]
        sums.append(normalize(sum([*parts, *normalize(texts[of_image].mean(dim=1), dim=-1)]), dim=-1))
    ids, scale, region_scale = torch.arange(4), output.logit_scale, output.region_logit_scale
    expected = {
        "scene": contrast_pairs(output.image_embeds, captions, ids.unsqueeze(-1), scale),
        "description": contrast_pairs(output.image_embeds, descriptions, ids.unsqueeze(-1), scale),
        "region": contrast_pairs(
            regions, phrases, torch.stack([batch["phrase_ids"][mask], concept_ids], -1), region_scale
        ),
        "concept": contrast_concepts(regions, concepts, concept_ids, region_scale),
        "crop_concept": contrast_concepts(
            crops, concept_of_crop, batch["concept_ids"].flatten()[batch["crop_index"]], scale
        ),
        "hard_negative": contrast_negatives(
            output.region_embeds, texts, batch["phrase_index"], batch["negative_index"], region_scale
        ),
        "crop_consistency": (1 - cosine_similarity(cropped, targets)).mean(),
        "image_consistency": align_distributions(
            output.image_embeds, torch.stack(means), ids, mask.any(dim=1), scale
        ),
        "text_consistency": align_distributions(
            descriptions, torch.stack(sums), ids, torch.ones(4).bool(), scale
        ),
    }
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name].detach(), msg=name)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    losses = compute_losses(*make_case()[:2], ALL, *make_case()[2:])
    expected = sum(getattr(ALL, name) * losses[name] for name in TERMS)
    torch.testing.assert_close(losses["loss"].detach(), expected)
    assert list(losses) == [*TERMS, "loss"]


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_zero_is_absent_and_changes_no_other(name):
    output, batch, crops, targets = make_case()
    full = compute_losses(output, batch, ALL, crops, targets)
    losses = compute_losses(output, batch, replace(ALL, **{name: 0.0}), crops, targets)
    assert losses.keys() == full.keys() - {name}
    for term in losses.keys() - {"loss"}:
        assert losses[term] == full[term]


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_gradients_for_exactly_the_embeddings_that_it_compares(name):
    output, batch, crops, targets = make_case()
    compute_losses(output, batch, replace(OFF, **{name: 1.0}), crops, targets)["loss"].backward()
    moved = {key for key, grad in collect_grads(output).items() if grad.abs().max() > 1e-6}
    pairs = {"image_embeds", "text_embeds", "logit_scale"}
    regions = {"region_embeds", "text_embeds", "region_logit_scale"}
    expected = {"scene": pairs, "description": pairs, "crop_concept": {"text_embeds", "logit_scale"}}
    expected |= dict.fromkeys(("region", "concept", "hard_negative"), regions)
    expected |= {"crop_consistency": {"region_embeds"}, "text_consistency": {"text_embeds"}}
    expected |= {"image_consistency": {"region_embeds"}}
    assert moved == expected[name]
    assert (crops.grad.abs().max() > 1e-6) == (name == "crop_concept")


def test_without_any_weight_the_loss_is_zero_and_still_has_gradients():
    output, batch, _, _ = make_case()
    losses = compute_losses(output, batch, OFF)
    assert {name: loss.item() for name, loss in losses.items()} == {"loss": 0.0}
    losses["loss"].backward()
    for name, grad in collect_grads(output).items():
        assert torch.equal(grad, torch.zeros_like(grad)), name


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_weight_below_zero_is_refused(name, weight):
    with pytest.raises(ValueError, match=rf"{name} is {weight}; it must be at least 0\b"):
        LossWeights(**{name: weight})


@pytest.mark.parametrize("name", ["crop_concept", "crop_consistency"])
def test_a_term_on_crops_without_crops_is_refused(name):
    output, batch, _, _ = make_case()
    argument = {"crop_concept": "crop_embeds", "crop_consistency": "target_embeds"}[name]
    with pytest.raises(ValueError, match=rf"{name} is 1.0, but {argument} is None"):
        compute_losses(output, batch, replace(OFF, **{name: 1.0}))


def test_presets_are_the_objectives_of_the_peers():
    switched = {name: {term for term in TERMS if getattr(PRESETS[name], term)} for name in PRESETS}
    scene = {"scene", "description"}
    assert switched == {
        "geoalign": {"scene", "region", "concept", "hard_negative"},
        "clip": scene,
        "fg_clip": scene | {"region", "hard_negative"},
        "far_slip": scene | {"crop_concept", "crop_consistency"},
    }


def test_only_texts_that_a_term_reads_are_encoded():
    assert OFF.text_kinds == set()
    assert PRESETS["clip"].text_kinds == {"caption", "description"}
    assert PRESETS["fg_clip"].text_kinds == {"caption", "description", "phrase", "negative"}
    assert PRESETS["far_slip"].text_kinds == {"caption", "description", "concept"}
    assert replace(OFF, text_consistency=1.0).text_kinds == {"caption", "description", "phrase", "concept"}
    assert [name for name in PRESETS if PRESETS[name].reads_crops] == ["far_slip"]


@pytest.mark.parametrize("term", ["concept", "crop_concept"])
def test_with_a_vocabulary_regions_are_contrasted_with_all_its_concepts(term):
    output, batch, crops, targets = make_case()
    batch["vocabulary_ids"] = torch.tensor([2, 0, 7, 1])  # the three of the regions, and one more
    index = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    batch["vocabulary_index"] = index
    vocabulary = normalize(output.text_embeds[index].mean(dim=1), dim=-1)
    losses = compute_losses(output, batch, replace(OFF, **{term: 1.0}), crops, targets, label_smoothing=0.1)
    regions, ids, scale = output.region_embeds.flatten(0, 1), batch["concept_ids"].flatten(), 5.0
    if term == "crop_concept":
        regions, ids, scale = crops, ids[batch["crop_index"]], 10.0
    scale = torch.tensor(scale)
    expected = contrast_vocabulary(regions, vocabulary, batch["vocabulary_ids"], ids, scale, 0.1)
    torch.testing.assert_close(losses[term], expected.detach())


def test_regions_with_equal_phrases_are_not_negatives_of_each_other():
    output, batch, crops, targets = make_case(num_real=(3, 3, 3, 3))
    batch["concept_ids"] = torch.arange(12).view(4, 3)
    batch["phrase_ids"][0] = 40  # "a large vehicle", three times in one image
    batch["phrase_index"][0] = batch["phrase_index"][0, 0]
    losses = compute_losses(output, batch, replace(OFF, region=1.0))
    logits = 5.0 * output.region_embeds.flatten(0, 1) @ output.text_embeds[batch["phrase_index"].flatten()].T
    is_twin = torch.zeros(12, 12, dtype=torch.bool)
    is_twin[:3, :3] = ~torch.eye(3, dtype=torch.bool)
    logits, own = logits.masked_fill(is_twin, float("-inf")), torch.arange(12)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(losses["region"], expected.detach())


def test_padding_changes_no_loss_and_no_gradient(model, processor, toy_rows):
    rows = [row | {"crops": list(range(len(row["boxes"])))[:2]} for row in toy_rows]
    results = []
    for padding in (0, 3):
        batch = RowCollator(processor, 6 + padding)(rows)
        model.zero_grad()
        embeds = encode_batch(model, batch, with_crops=True)
        crops = embeds["crop_embeds"], embeds["target_embeds"]
        losses = compute_losses(SimpleNamespace(**embeds), batch, ALL, *crops)
        losses["loss"].backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        results.append((torch.stack(list(losses.values())).detach(), grads))
    (losses, grads), (padded_losses, padded_grads) = results
    torch.testing.assert_close(padded_losses, losses, rtol=1e-6, atol=1e-8)
    assert (padded_grads - grads).norm() < 1e-5 * grads.norm()


def test_the_content_of_padding_does_not_matter():
    output, batch, crops, targets = make_case()
    before = compute_losses(output, batch, ALL, crops, targets)
    padding = batch["phrase_ids"] < 0
    with torch.no_grad():
        output.region_embeds[padding] = 0.5
        batch["phrase_index"][padding] = 0
        batch["concept_index"][padding] = 0
    after = compute_losses(output, batch, ALL, crops, targets)
    for name in before:
        assert before[name] == after[name]


def test_the_order_of_images_and_regions_changes_no_loss():
    output, batch, crops, targets = make_case()
    before = compute_losses(output, batch, ALL, crops, targets)
    images, regions = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    for name in ("image_embeds", "region_embeds"):
        setattr(output, name, getattr(output, name)[images])
    output.region_embeds = output.region_embeds[:, regions]
    place = torch.arange(12).view(4, 3)[images][:, regions].flatten().argsort()
    batch["crop_index"] = place[batch["crop_index"]]
    for name in set(batch) - {"crop_index"}:
        tensor = batch[name][images]
        per_region = name.startswith(("phrase", "concept", "negative", "region"))
        batch[name] = tensor[:, regions] if per_region else tensor
    after = compute_losses(output, batch, ALL, crops, targets)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)


def test_a_batch_without_regions_has_scene_terms_only_and_finite_gradients():
    output, batch, crops, targets = make_case(num_real=(0, 0, 0, 0))
    weights = replace(ALL, text_consistency=0.0)
    losses = compute_losses(output, batch, weights, crops, targets)
    for name in set(TERMS) - {"scene", "description", "text_consistency"}:
        assert losses[name] == 0, name
    assert losses["loss"].item() == pytest.approx((losses["scene"] + 0.9 * losses["description"]).item())
    losses["loss"].backward()
    grads = collect_grads(output)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["region_embeds"].abs().max() == 0 and grads["region_logit_scale"] == 0


def test_a_batch_without_regions_or_texts_has_finite_gradients(model, processor, toy_rows):
    empty = {name: [] for name in ("boxes", "quads", "phrases", "concepts", "hard_negatives", "crops")}
    for words in ({}, {"captions": [], "description": None}):
        batch = RowCollator(processor, 2)([row | empty | words for row in toy_rows[:3]])
        model.zero_grad()
        embeds = encode_batch(model, batch, with_crops=True)
        crops = embeds["crop_embeds"], embeds["target_embeds"]
        losses = compute_losses(SimpleNamespace(**embeds), batch, ALL, *crops)
        losses["loss"].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(loss == 0 for loss in losses.values())


def test_a_row_without_a_text_is_ignored():
    output, batch, crops, targets = make_case()
    for name, kind in (("scene", "caption"), ("description", "description")):
        batch[f"{kind}_ids"][1] = -100
        kept = [0, 2, 3]
        expected = contrast_pairs(
            output.image_embeds[kept], output.text_embeds[batch[f"{kind}_index"][kept]],
            torch.arange(3).unsqueeze(-1), output.logit_scale,
        )  # fmt: skip
        losses = compute_losses(output, batch, ALL, crops, targets)
        torch.testing.assert_close(losses[name], expected.detach())


def test_a_region_without_a_phrase_has_no_hard_negatives():
    output, batch, crops, targets = make_case()
    batch["phrase_ids"][0, 1] = -100
    losses = compute_losses(output, batch, ALL, crops, targets)
    batch["negative_index"][0, 1] = -100
    expected = compute_losses(output, batch, ALL, crops, targets)
    assert losses["hard_negative"] == expected["hard_negative"]


def test_half_precision_outputs_still_give_losses_in_float32():
    output, batch, crops, targets = make_case(dtype=torch.bfloat16)
    losses = compute_losses(output, batch, ALL, crops, targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name, embeds in vars(output).items():
        setattr(output, name, embeds.float())
    for name, loss in compute_losses(output, batch, ALL, crops.float(), targets.float()).items():
        assert losses[name] == loss
