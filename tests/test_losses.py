"""Laws of the losses: hand-worked numbers, invariances, and slow second ways to the same number."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from geoalign_hf.collator import LOSS_KEYS, RowCollator
from geoalign_hf.losses import LossWeights, compute_losses, contrast_concepts, contrast_pairs

SCALE = torch.tensor(7.0, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def number(values) -> torch.Tensor:
    """One id for each pair."""
    return torch.tensor(list(values)).unsqueeze(-1)


def make_case(B=4, R=3, num_real=(3, 1, 0, 2), N=9, T=2, D=8, dtype=torch.float32, seed=0):
    """Random embeddings and a batch around them; every leaf can take gradients."""
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
        "caption_index": index(B),
        "description_index": index(B),
        "phrase_index": index(B, R),
        "concept_index": index(3, T)[concept_ids],  # equal concepts have equal words
        "caption_ids": torch.arange(B),
        "description_ids": torch.arange(B) + 20,
        "phrase_ids": (torch.arange(B * R) + 40).view(B, R).masked_fill(~mask, -100),
        "concept_ids": concept_ids.masked_fill(~mask, -100),
    }
    return output, batch


def collect_grads(output) -> dict:
    return {name: leaf.grad for name, leaf in vars(output).items()}


# Pairs


@pytest.mark.parametrize("num", [1, 2, 5])
def test_pairs_that_all_look_alike_cost_the_logarithm_of_their_number(num):
    same = draw(1, 4).expand(num, 4)
    loss = contrast_pairs(same, same, number(range(num)), SCALE)
    assert loss.item() == pytest.approx(math.log(num), abs=1e-12)


def test_two_orthogonal_pairs_cost_what_is_worked_out_by_hand():
    eye = torch.eye(2, dtype=torch.float64)
    # Own logit 7, other 0: log(1 + e^-7), each way.
    assert contrast_pairs(eye, eye, number([0, 1]), SCALE).item() == pytest.approx(math.log1p(math.exp(-7)))
    # Mismatched: own logit 0, other 7.
    loss = contrast_pairs(eye, eye.flip(0), number([0, 1]), SCALE)
    assert loss.item() == pytest.approx(7 + math.log1p(math.exp(-7)))


def test_pairs_with_ids_of_their_own_cost_cross_entropy_both_ways():
    left, right, target = draw(6, 5, seed=1), draw(6, 5, seed=2), torch.arange(6)
    logits = SCALE * left @ right.T
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrast_pairs(left, right, number(range(6)), SCALE), expected)


def test_a_pair_with_the_same_id_is_no_negative():
    left, right = draw(3, 5, seed=1), draw(3, 5, seed=2)
    logits = SCALE * left @ right.T
    # Pairs 0 and 2 share an id: row by row, what each pair is compared with.
    others = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    ways = [
        matrix[i, members].logsumexp(0) - matrix[i, i] for matrix in (logits, logits.T)
        for i, members in others.items()
    ]  # fmt: skip
    expected = sum(ways) / 6
    torch.testing.assert_close(contrast_pairs(left, right, number([4, 9, 4]), SCALE), expected)


def test_any_one_of_several_ids_makes_pairs_alike():
    left, right = draw(3, 5, seed=1), draw(3, 5, seed=2)
    by_second = contrast_pairs(left, right, torch.tensor([[1, 8], [2, 9], [3, 8]]), SCALE)
    torch.testing.assert_close(by_second, contrast_pairs(left, right, number([8, 9, 8]), SCALE))


def test_equal_numbers_in_different_places_are_not_alike():
    left, right = draw(2, 5, seed=1), draw(2, 5, seed=2)
    crossed = contrast_pairs(left, right, torch.tensor([[1, 2], [2, 1]]), SCALE)
    torch.testing.assert_close(crossed, contrast_pairs(left, right, number([0, 1]), SCALE))


def test_pairs_that_are_all_duplicates_cost_nothing():
    assert contrast_pairs(draw(4, 5), draw(4, 5, seed=1), number([3] * 4), SCALE).item() == 0


def test_a_duplicate_row_changes_no_gradient_of_itself():
    left, right = draw(1, 5, seed=1).requires_grad_(), draw(1, 5, seed=2)
    contrast_pairs(torch.cat([left, left]), torch.cat([right, right]), number([3, 3]), SCALE).backward()
    assert left.grad.abs().max() == 0


def test_a_pair_with_the_id_minus_100_is_left_out():
    left, right = draw(4, 5, seed=1), draw(4, 5, seed=2)
    loss = contrast_pairs(left, right, number([0, -100, 1, -100]), SCALE)
    torch.testing.assert_close(loss, contrast_pairs(left[::2], right[::2], number([0, 1]), SCALE))


def test_the_order_of_pairs_does_not_matter():
    left, right, ids = draw(7, 5, seed=1), draw(7, 5, seed=2), number([1, 2, 2, 3, -100, 1, 4])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    shuffled = contrast_pairs(left[order], right[order], ids[order], SCALE)
    torch.testing.assert_close(shuffled, contrast_pairs(left, right, ids, SCALE))


def test_left_and_right_can_be_swapped():
    left, right, ids = draw(7, 5, seed=1), draw(7, 5, seed=2), number([1, 2, 2, 3, -100, 1, 4])
    torch.testing.assert_close(
        contrast_pairs(left, right, ids, SCALE), contrast_pairs(right, left, ids, SCALE)
    )


# Concepts


def contrast_concepts_slowly(region_embeds, concept_embeds, concept_ids, scale) -> float:
    """Both ways in plain loops: (A) each region over concepts, (B) each concept over regions."""
    regions = [n for n, concept in enumerate(concept_ids.tolist()) if concept >= 0]
    concepts = sorted({concept_ids[n].item() for n in regions})
    embeds = {
        concept: next(concept_embeds[n] for n in regions if concept_ids[n] == concept) for concept in concepts
    }

    def weigh(n, concept):
        return math.exp(scale.item() * float(region_embeds[n] @ embeds[concept]))

    to_concepts = 0.0
    for n in regions:
        total = sum(weigh(n, concept) for concept in concepts)
        to_concepts -= math.log(weigh(n, concept_ids[n].item()) / total) / len(regions)
    to_regions = 0.0
    for concept in concepts:
        total = sum(weigh(n, concept) for n in regions)
        members = [n for n in regions if concept_ids[n] == concept]
        to_regions -= sum(math.log(weigh(n, concept) / total) for n in members) / len(members) / len(concepts)
    return (to_concepts + to_regions) / 2


@pytest.mark.parametrize(
    "concept_ids", [[7, 9, 7, 7, 2, 9], [7, -100, 9, -100, 7, 2], [5] * 6, [0, 1, 2, 3, 4, 5], [2**62] * 6]
)
def test_concepts_cost_what_plain_loops_say(concept_ids):
    concept_ids = torch.tensor(concept_ids)
    of_concept = {concept: draw(5, seed=n) for n, concept in enumerate(concept_ids.unique().tolist())}
    concept_embeds = torch.stack([of_concept[concept] for concept in concept_ids.tolist()])
    region_embeds = draw(6, 5, seed=99)
    loss = contrast_concepts(region_embeds, concept_embeds, concept_ids, SCALE)
    expected = contrast_concepts_slowly(region_embeds, concept_embeds, concept_ids, SCALE)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_regions_and_concepts_that_all_look_alike_cost_their_logarithms():
    same = draw(1, 4).expand(6, 4)
    loss = contrast_concepts(same, same, torch.tensor([1, 1, 1, 2, 2, 3]), SCALE)
    assert loss.item() == pytest.approx((math.log(3) + math.log(6)) / 2, abs=1e-12)


def test_with_one_region_per_concept_concepts_cost_what_pairs_cost():
    left, right, ids = draw(6, 5, seed=1), draw(6, 5, seed=2), torch.arange(6)
    torch.testing.assert_close(
        contrast_concepts(left, right, ids, SCALE), contrast_pairs(left, right, ids.unsqueeze(-1), SCALE)
    )


def test_the_order_of_regions_does_not_matter_to_concepts():
    concept_ids = torch.tensor([7, 9, 7, -100, 2, 9])
    concept_embeds = draw(10, 5, seed=3)[concept_ids.clamp(min=0)]
    region_embeds = draw(6, 5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        contrast_concepts(region_embeds[order], concept_embeds[order], concept_ids[order], SCALE),
        contrast_concepts(region_embeds, concept_embeds, concept_ids, SCALE),
    )


@pytest.mark.parametrize("contrast", [contrast_pairs, contrast_concepts])
def test_nothing_costs_nothing_and_gives_gradients_of_zero(contrast):
    left, right = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    scale = SCALE.clone().requires_grad_()
    ids = torch.full((3,), -100)
    loss = contrast(left, right, ids.unsqueeze(-1) if contrast is contrast_pairs else ids, scale)
    assert loss.item() == 0
    loss.backward()
    for leaf in (left, right, scale):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("contrast", [contrast_pairs, contrast_concepts])
def test_one_region_has_nothing_to_be_told_from(contrast):
    left, right = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    ids = torch.tensor([-100, 4, -100])
    loss = contrast(left, right, ids.unsqueeze(-1) if contrast is contrast_pairs else ids, SCALE)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert left.grad.abs().max() < 1e-12 and right.grad.abs().max() < 1e-12


# The whole objective


def test_equal_embeddings_cost_the_logarithm_of_the_batch():
    output, batch = make_case(B=4, R=3, num_real=(3, 3, 3, 3))
    for name in ("image_embeds", "text_embeds", "region_embeds"):
        embeds = getattr(output, name)
        setattr(output, name, torch.ones_like(embeds) / embeds.shape[-1] ** 0.5)
    batch["concept_ids"] = torch.arange(12).view(4, 3)
    losses = {name: loss.item() for name, loss in compute_losses(output, batch, LossWeights()).items()}
    # The scene has two texts, caption and description.
    expected = {"scene": 2 * math.log(4), "region": math.log(12), "concept": math.log(12)}
    expected["loss"] = expected["scene"] + 0.1 * expected["region"] + 0.5 * expected["concept"]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_terms_are_those_of_the_texts_that_the_indices_name():
    output, batch = make_case()
    texts, mask = output.text_embeds, batch["phrase_ids"] >= 0
    losses = compute_losses(output, batch, LossWeights())
    scene = sum(
        contrast_pairs(
            output.image_embeds, texts[batch[f"{name}_index"]], batch[f"{name}_ids"].unsqueeze(-1),
            output.logit_scale,
        )
        for name in ("caption", "description")
    )  # fmt: skip
    ids = torch.stack([batch["phrase_ids"][mask], batch["concept_ids"][mask]], dim=-1)
    regions = output.region_embeds[mask]
    phrases = texts[batch["phrase_index"][mask]]
    concepts = normalize(texts[batch["concept_index"][mask]].mean(dim=1), dim=-1)
    torch.testing.assert_close(losses["scene"], scene)
    torch.testing.assert_close(
        losses["region"], contrast_pairs(regions, phrases, ids, output.region_logit_scale)
    )
    torch.testing.assert_close(
        losses["concept"],
        contrast_concepts(regions, concepts, batch["concept_ids"][mask], output.region_logit_scale),
    )


def test_the_loss_is_the_weighted_sum_of_its_terms():
    output, batch = make_case()
    weights = LossWeights(scene=0.3, region=2.0, concept=0.7)
    losses = compute_losses(output, batch, weights)
    expected = 0.3 * losses["scene"] + 2.0 * losses["region"] + 0.7 * losses["concept"]
    torch.testing.assert_close(losses["loss"], expected)
    assert list(losses) == ["scene", "region", "concept", "loss"]


@pytest.mark.parametrize("name", ["scene", "region", "concept"])
def test_a_term_of_weight_zero_is_absent_and_changes_no_other(name):
    output, batch = make_case()
    full = compute_losses(output, batch, LossWeights())
    losses = compute_losses(output, batch, LossWeights(**{name: 0.0}))
    assert losses.keys() == full.keys() - {name}
    for term in losses.keys() - {"loss"}:
        assert losses[term] == full[term]


def test_without_any_weight_the_loss_is_zero_and_still_has_gradients():
    output, batch = make_case()
    losses = compute_losses(output, batch, LossWeights(0.0, 0.0, 0.0))
    assert {name: loss.item() for name, loss in losses.items()} == {"loss": 0.0}
    losses["loss"].backward()
    for name, grad in collect_grads(output).items():
        assert torch.equal(grad, torch.zeros_like(grad)), name


@pytest.mark.parametrize("name", ["scene", "region", "concept"])
@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_weight_below_zero_is_refused(name, weight):
    message = f"the loss weight {name} is {weight}; it must be at least 0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LossWeights(**{name: weight})


def test_padding_changes_no_loss_and_no_gradient(model, processor, toy_rows):
    results = []
    for padding in (0, 3):
        batch = RowCollator(processor, 6 + padding)(toy_rows)
        model.zero_grad()
        inputs = {key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS}
        losses = compute_losses(model(**inputs), batch, LossWeights())
        losses["loss"].backward()
        grads = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results.append((torch.stack(list(losses.values())).detach(), grads))
    (losses, grads), (padded_losses, padded_grads) = results
    torch.testing.assert_close(padded_losses, losses, rtol=1e-6, atol=0)
    assert (padded_grads - grads).norm() < 1e-5 * grads.norm()


def test_what_padding_holds_does_not_matter():
    output, batch = make_case()
    before = compute_losses(output, batch, LossWeights())
    padding = batch["phrase_ids"] < 0
    with torch.no_grad():
        output.region_embeds[padding] = 0.5
        batch["phrase_index"][padding] = 0
        batch["concept_index"][padding] = 0
    after = compute_losses(output, batch, LossWeights())
    for name in before:
        assert before[name] == after[name]


def test_the_order_of_images_and_regions_changes_no_loss():
    output, batch = make_case()
    before = compute_losses(output, batch, LossWeights())
    images, regions = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    for name in ("image_embeds", "region_embeds"):
        setattr(output, name, getattr(output, name)[images])
    output.region_embeds = output.region_embeds[:, regions]
    for name, tensor in batch.items():
        tensor = tensor[images]
        batch[name] = tensor[:, regions] if name.startswith(("phrase", "concept")) else tensor
    after = compute_losses(output, batch, LossWeights())
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=0)


def test_a_batch_without_regions_costs_its_scenes_alone_and_leaves_finite_gradients():
    output, batch = make_case(num_real=(0, 0, 0, 0))
    losses = compute_losses(output, batch, LossWeights())
    assert losses["region"].item() == losses["concept"].item() == 0
    assert losses["loss"].item() == losses["scene"].item()
    losses["loss"].backward()
    grads = collect_grads(output)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["region_embeds"].abs().max() == 0 and grads["region_logit_scale"] == 0


def test_a_model_without_regions_in_its_batch_gets_finite_gradients(model, processor, toy_rows):
    empty = {name: [] for name in ("boxes", "quads", "phrases", "concepts", "hard_negatives")}
    batch = RowCollator(processor, 2)([row | empty for row in toy_rows[:3]])
    inputs = {key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS}
    compute_losses(model(**inputs), batch, LossWeights())["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_batch_without_captions_costs_its_descriptions_alone():
    output, batch = make_case()
    both = compute_losses(output, batch, LossWeights())["scene"]
    without = {
        name: compute_losses(output, batch | {f"{name}_ids": torch.full((4,), -100)}, LossWeights())["scene"]
        for name in ("caption", "description")
    }
    torch.testing.assert_close(without["caption"] + without["description"], both)


def test_half_precision_outputs_still_give_losses_in_float32():
    output, batch = make_case(dtype=torch.bfloat16)
    losses = compute_losses(output, batch, LossWeights())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name, embeds in vars(output).items():
        setattr(output, name, embeds.float())
    for name, loss in compute_losses(output, batch, LossWeights()).items():
        assert losses[name] == loss
