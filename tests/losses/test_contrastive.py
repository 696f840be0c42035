"""Laws of the contrastive losses: numbers computed by hand, invariances, and slow second implementations."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, normalize

from geoalign_hf.losses import contrastive as contrast
from geoalign_hf.losses.contrastive import contrast_concepts, contrast_pairs, contrast_vocabulary
from geoalign_hf.losses.per_row import align_distributions, contrast_negatives, local_mean

SCALE = torch.tensor(7.0, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def number(values) -> torch.Tensor:
    """One id for each pair."""
    return torch.tensor(list(values)).unsqueeze(-1)


# Pairs


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_loss_of_pairs_with_equal_embeddings_is_the_logarithm_of_their_number(num):
    same = draw(1, 4).expand(num, 4)
    loss = contrast_pairs(same, same, number(range(num)), SCALE)
    assert loss.item() == pytest.approx(math.log(num), abs=1e-12)


def test_the_loss_of_two_orthogonal_pairs_is_the_one_computed_by_hand():
    eye = torch.eye(2, dtype=torch.float64)
    # Own logit 7, other 0: log(1 + e^-7), each way.
    assert contrast_pairs(eye, eye, number([0, 1]), SCALE).item() == pytest.approx(math.log1p(math.exp(-7)))
    # Mismatched: own logit 0, other 7.
    loss = contrast_pairs(eye, eye.flip(0), number([0, 1]), SCALE)
    assert loss.item() == pytest.approx(7 + math.log1p(math.exp(-7)))


def test_with_unique_ids_the_loss_of_pairs_is_cross_entropy_in_both_directions():
    left, right, target = draw(6, 5, seed=1), draw(6, 5, seed=2), torch.arange(6)
    logits = SCALE * left @ right.T
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrast_pairs(left, right, number(range(6)), SCALE), expected)


def test_a_pair_with_the_same_id_is_not_a_negative():
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


def test_pairs_that_share_one_of_several_ids_are_not_negatives():
    left, right = draw(3, 5, seed=1), draw(3, 5, seed=2)
    by_second = contrast_pairs(left, right, torch.tensor([[1, 8], [2, 9], [3, 8]]), SCALE)
    torch.testing.assert_close(by_second, contrast_pairs(left, right, number([8, 9, 8]), SCALE))


def test_two_missing_ids_are_not_equal():
    left, right = draw(3, 5, seed=1), draw(3, 5, seed=2)
    lacking = contrast_pairs(left, right, torch.tensor([[1, -100], [2, -100], [3, 7]]), SCALE)
    torch.testing.assert_close(lacking, contrast_pairs(left, right, number([1, 2, 3]), SCALE))


def test_ids_of_different_columns_are_not_compared():
    left, right = draw(2, 5, seed=1), draw(2, 5, seed=2)
    crossed = contrast_pairs(left, right, torch.tensor([[1, 2], [2, 1]]), SCALE)
    torch.testing.assert_close(crossed, contrast_pairs(left, right, number([0, 1]), SCALE))


def test_the_loss_of_duplicates_alone_is_zero():
    assert contrast_pairs(draw(4, 5), draw(4, 5, seed=1), number([3] * 4), SCALE).item() == 0


def test_a_duplicate_row_changes_no_gradient_of_itself():
    left, right = draw(1, 5, seed=1).requires_grad_(), draw(1, 5, seed=2)
    contrast_pairs(torch.cat([left, left]), torch.cat([right, right]), number([3, 3]), SCALE).backward()
    assert left.grad.abs().max() == 0


def test_a_pair_with_the_id_minus_100_is_ignored():
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
def test_the_loss_of_concepts_equals_plain_loops(concept_ids):
    concept_ids = torch.tensor(concept_ids)
    of_concept = {concept: draw(5, seed=n) for n, concept in enumerate(concept_ids.unique().tolist())}
    concept_embeds = torch.stack([of_concept[concept] for concept in concept_ids.tolist()])
    region_embeds = draw(6, 5, seed=99)
    loss = contrast_concepts(region_embeds, concept_embeds, concept_ids, SCALE)
    expected = contrast_concepts_slowly(region_embeds, concept_embeds, concept_ids, SCALE)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_concepts_with_equal_embeddings_is_the_mean_of_two_logarithms():
    same = draw(1, 4).expand(6, 4)
    loss = contrast_concepts(same, same, torch.tensor([1, 1, 1, 2, 2, 3]), SCALE)
    assert loss.item() == pytest.approx((math.log(3) + math.log(6)) / 2, abs=1e-12)


def test_with_one_region_per_concept_the_loss_equals_that_of_pairs():
    left, right, ids = draw(6, 5, seed=1), draw(6, 5, seed=2), torch.arange(6)
    torch.testing.assert_close(
        contrast_concepts(left, right, ids, SCALE), contrast_pairs(left, right, ids.unsqueeze(-1), SCALE)
    )


def test_the_order_of_regions_does_not_change_the_loss_of_concepts():
    concept_ids = torch.tensor([7, 9, 7, -100, 2, 9])
    concept_embeds = draw(10, 5, seed=3)[concept_ids.clamp(min=0)]
    region_embeds = draw(6, 5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        contrast_concepts(region_embeds[order], concept_embeds[order], concept_ids[order], SCALE),
        contrast_concepts(region_embeds, concept_embeds, concept_ids, SCALE),
    )


@pytest.mark.parametrize("contrast", [contrast_pairs, contrast_concepts])
def test_without_pairs_loss_and_gradients_are_zero(contrast):
    left, right = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    scale = SCALE.clone().requires_grad_()
    ids = torch.full((3,), -100)
    loss = contrast(left, right, ids.unsqueeze(-1) if contrast is contrast_pairs else ids, scale)
    assert loss.item() == 0
    loss.backward()
    for leaf in (left, right, scale):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("contrast", [contrast_pairs, contrast_concepts])
def test_the_loss_of_one_region_is_zero(contrast):
    left, right = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    ids = torch.tensor([-100, 4, -100])
    loss = contrast(left, right, ids.unsqueeze(-1) if contrast is contrast_pairs else ids, SCALE)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert left.grad.abs().max() < 1e-12 and right.grad.abs().max() < 1e-12


@pytest.mark.parametrize("function", [contrast_pairs, contrast_concepts])
@pytest.mark.parametrize("block_size", [1, 13, 2**23])
def test_gradients_pass_gradcheck_for_every_block_size(function, block_size, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK_SIZE", block_size)
    ids = torch.tensor([7, 9, 7, -100, 2, 9, 9])
    ids = ids.unsqueeze(-1) if function is contrast_pairs else ids
    right = draw(7, 5, seed=1)
    if function is contrast_concepts:  # equal concepts have equal embeddings
        right = draw(10, 5, seed=1)[ids.clamp(min=0)]
    leaves = [tensor.requires_grad_() for tensor in (draw(7, 5), right.clone(), SCALE.clone())]

    def compute(left, right, scale):
        if function is contrast_concepts:  # a small change of one must be one of all that are equal
            right = right[torch.tensor([0, 1, 0, 3, 4, 1, 1])]
        return function(left, right, ids, scale)

    assert torch.autograd.gradcheck(compute, leaves)


@pytest.mark.parametrize("function", [contrast_pairs, contrast_concepts])
def test_the_block_size_changes_neither_value_nor_gradient(function, monkeypatch):
    ids = torch.arange(40) % 11
    left, right = draw(40, 8), draw(11, 8, seed=1)[ids]
    results = []
    for block_size in (2**23, 100):
        monkeypatch.setattr(contrast, "BLOCK_SIZE", block_size)
        leaves = [tensor.clone().requires_grad_() for tensor in (left, right, SCALE)]
        loss = function(*leaves[:2], ids.unsqueeze(-1) if function is contrast_pairs else ids, leaves[2])
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole)


def test_at_the_highest_scale_a_small_loss_is_precise_in_float32():
    generator = torch.Generator().manual_seed(0)
    left = normalize(torch.randn(200, 64, generator=generator, dtype=torch.float64), dim=-1)
    right = normalize(left + 0.05 * torch.randn(200, 64, generator=generator, dtype=torch.float64), dim=-1)
    exact = contrast_pairs(left, right, number(range(200)), torch.tensor(100.0, dtype=torch.float64))
    single = contrast_pairs(left.float(), right.float(), number(range(200)), torch.tensor(100.0))
    assert exact < 1e-4
    assert abs(single - exact) < 1e-6


# Concepts of a vocabulary


def contrast_vocabulary_slowly(regions, vocabulary, targets, scale, smoothing=0.0) -> torch.Tensor:
    """Each region over all columns by torch's cross-entropy, each column with regions over all regions."""
    logits = scale * regions @ vocabulary.T
    to_concepts = cross_entropy(logits, targets, label_smoothing=smoothing)
    columns = [
        (logits[:, c].logsumexp(0) - logits[targets == c, c]).mean() for c in targets.unique().tolist()
    ]
    return (to_concepts + sum(columns) / len(columns)) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("block_size", [1, 13, 2**23])
def test_the_loss_of_a_vocabulary_equals_torch_s_cross_entropy(smoothing, block_size, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK_SIZE", block_size)
    vocabulary_ids = torch.tensor([40, 7, 2**62, 3, 9])  # not sorted; 2**62 has no region
    targets = torch.tensor([1, 4, 1, 0, 3, 1])
    ids = vocabulary_ids[targets]
    ids = torch.cat([ids[:2], torch.tensor([-100]), ids[2:]])  # a region without a concept
    regions = draw(7, 5, seed=1)
    is_real = ids >= 0
    results = []
    for compute in (
        lambda r, v, s: contrast_vocabulary(r, v, vocabulary_ids, ids, s, smoothing),
        lambda r, v, s: contrast_vocabulary_slowly(r[is_real], v, targets, s, smoothing),
    ):
        leaves = [t.clone().requires_grad_() for t in (regions, draw(5, 5, seed=2), SCALE)]
        loss = compute(*leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_vocabulary_of_the_regions_own_concepts_changes_no_loss():
    vocabulary, ids = draw(3, 5, seed=2), torch.tensor([20, 10, 30])
    targets = torch.tensor([0, 1, 2, 1, 1])
    alone = contrast_concepts(draw(5, 5), vocabulary[targets], ids[targets], SCALE, 0.2)
    torch.testing.assert_close(
        contrast_vocabulary(draw(5, 5), vocabulary, ids, ids[targets], SCALE, 0.2), alone
    )


def test_the_order_of_a_vocabulary_does_not_matter():
    vocabulary, ids, order = draw(4, 5, seed=2), torch.tensor([20, 10, 30, 5]), torch.tensor([2, 0, 3, 1])
    of_regions = torch.tensor([30, 30, 5])
    torch.testing.assert_close(
        contrast_vocabulary(draw(3, 5), vocabulary[order], ids[order], of_regions, SCALE),
        contrast_vocabulary(draw(3, 5), vocabulary, ids, of_regions, SCALE),
    )


def test_without_regions_the_loss_of_a_vocabulary_and_its_gradients_are_zero():
    regions, vocabulary = draw(3, 5).requires_grad_(), draw(4, 5, seed=1).requires_grad_()
    ids = torch.full((3,), -100)
    loss = contrast_vocabulary(regions, vocabulary, torch.arange(4), ids, SCALE, 0.1)
    loss.backward()
    assert loss == 0 and regions.grad.abs().max() == 0 and vocabulary.grad.abs().max() == 0


# Hard negatives


def test_each_region_is_contrasted_with_its_own_negatives_only():
    texts, regions = draw(9, 5, seed=1), draw(2, 2, 5, seed=2)
    phrase = torch.tensor([[0, 1], [2, 3]])
    negative = torch.tensor([[[4, 5, 6], [7, -100, -100]], [[-100] * 3, [8, 4, -100]]])
    costs = []
    for b, r, others in ((0, 0, [4, 5, 6]), (0, 1, [7]), (1, 1, [8, 4])):  # the fourth region has none
        logits = SCALE * texts[[int(phrase[b, r]), *others]] @ regions[b, r]
        costs.append(cross_entropy(logits, torch.tensor(0)))
    loss = contrast_negatives(regions, texts, phrase, negative, SCALE)
    torch.testing.assert_close(loss, sum(costs) / 3)


def test_a_text_equal_to_the_phrase_is_not_a_negative():
    texts, regions = draw(3, 5, seed=1), draw(1, 1, 5)
    phrase = torch.tensor([[0]])
    clean = contrast_negatives(regions, texts, phrase, torch.tensor([[[1, 2]]]), SCALE)
    doubled = contrast_negatives(regions, texts, phrase, torch.tensor([[[1, 0, 2, -100]]]), SCALE)
    torch.testing.assert_close(doubled, clean)


@pytest.mark.parametrize("K", [0, 3])
def test_without_negatives_loss_and_gradients_are_zero(K):
    texts, regions = draw(3, 5, seed=1).requires_grad_(), draw(2, 2, 5).requires_grad_()
    negative = torch.full((2, 2, K), -100)
    loss = contrast_negatives(regions, texts, torch.zeros(2, 2, dtype=torch.long), negative, SCALE)
    loss.backward()
    assert loss == 0 and regions.grad.abs().max() == 0 and texts.grad.abs().max() == 0


# Alignment of distributions


def align_slowly(whole, parts, ids, is_real, scale) -> torch.Tensor:
    costs = []
    for i in range(len(whole)):
        others = [j for j in range(len(whole)) if ids[j] >= 0 and ids[j] != ids[i]]
        if is_real[i] and others:
            logs = [(scale * side[i] @ whole[others].T).log_softmax(0) for side in (whole, parts)]
            costs.append(
                kl_div(logs[0], logs[1], log_target=True, reduction="sum") / 2
                + kl_div(logs[1], logs[0], log_target=True, reduction="sum") / 2
            )
    return sum(costs) / max(int(is_real.sum()), 1)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, -100, 1]])
@pytest.mark.parametrize("block_size", [7, 2**23])
def test_alignment_equals_the_symmetric_divergence_of_two_distributions(ids, block_size, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK_SIZE", block_size)
    ids = torch.tensor(ids)
    is_real = torch.tensor([True, True, False, True, False, True])
    whole, parts = draw(6, 5, seed=1), draw(6, 5, seed=2)
    loss = align_distributions(whole, parts, ids, is_real, SCALE)
    torch.testing.assert_close(loss, align_slowly(whole, parts, ids, is_real, SCALE))


def test_alignment_has_gradients_for_both_sides_and_none_for_the_scale():
    whole, parts = draw(6, 5, seed=1).requires_grad_(), draw(6, 5, seed=2).requires_grad_()
    scale = SCALE.clone().requires_grad_()
    align_distributions(whole, parts, torch.arange(6), torch.ones(6, dtype=torch.bool), scale).backward()
    assert whole.grad.norm(dim=1).min() > 0 and parts.grad.norm(dim=1).min() > 0
    assert scale.grad is None


@pytest.mark.parametrize("ids", [[3], [3, 3, 3], [-100, -100]])
def test_without_other_rows_alignment_is_zero(ids):
    whole, parts = draw(len(ids), 5, seed=1).requires_grad_(), draw(len(ids), 5, seed=2).requires_grad_()
    ids = torch.tensor(ids)
    loss = align_distributions(whole, parts, ids, ids >= 0, SCALE)
    loss.backward()
    assert loss == 0 and whole.grad.abs().max() == 0 and parts.grad.abs().max() == 0


def test_the_local_mean_of_one_process_is_the_mean():
    assert local_mean(torch.tensor([1.0, 2.0, 6.0])) == 3
    assert local_mean(torch.tensor([])) == 0


# Broader and narrower concepts

VEHICLE, CAR, BUS, SHIP = 3, 5, 8, 13
BROADER = {VEHICLE: [-100, -100], CAR: [VEHICLE, -100], BUS: [-100, VEHICLE], SHIP: [-100, -100]}


def list_broader(ids) -> torch.Tensor:
    return torch.tensor([BROADER.get(int(number), [-100, -100]) for number in ids])


def are_related(ids, other_ids) -> torch.Tensor:
    """Whether one of two concepts is broader than the other."""
    broader = {number: {b for b in above if b >= 0} for number, above in BROADER.items()} | {-100: set()}
    return torch.tensor([[b in broader[a] or a in broader[b] for b in other_ids] for a in ids])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("block_size", [1, 2**22])
def test_broader_and_narrower_concepts_of_a_vocabulary_are_left_out(smoothing, block_size, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK_SIZE", block_size)
    vocabulary_ids, ids = [SHIP, VEHICLE, CAR, BUS], [CAR, SHIP, VEHICLE, BUS, CAR]
    targets = torch.tensor([vocabulary_ids.index(number) for number in ids])
    is_related = are_related(ids, vocabulary_ids)

    def compute_slowly(regions, vocabulary, scale):
        logits = (scale * regions @ vocabulary.T).masked_fill(is_related, float("-inf"))
        rows = []
        for row, target in zip(logits, targets, strict=True):
            compared = row[row > float("-inf")]
            rows.append(row.logsumexp(0) - (1 - smoothing) * row[target] - smoothing * compared.mean())
        columns = [
            torch.stack([column.logsumexp(0) - column[r] for r in range(5) if targets[r] == c]).mean()
            for c, column in enumerate(logits.T)
        ]
        return (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2

    ids, vocabulary_ids = torch.tensor(ids), torch.tensor(vocabulary_ids)
    masks = list_broader(ids), list_broader(vocabulary_ids)
    results = []
    for compute in (
        lambda r, v, s: contrast_vocabulary(r, v, vocabulary_ids, ids, s, smoothing, *masks),
        compute_slowly,
        lambda r, v, s: contrast_concepts(r, v[targets], ids, s, smoothing, masks[0]),
    ):
        inputs = [draw(5, 6, seed=1), draw(4, 6, seed=2), SCALE.clone()]
        loss = compute(*[tensor.requires_grad_() for tensor in inputs])
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for result in results[1:]:
        for found, expected in zip(results[0], result, strict=True):
            torch.testing.assert_close(found, expected)


def test_a_broader_concept_gets_no_gradient_from_the_regions_of_a_narrower_one():
    ids, vocabulary_ids = torch.tensor([CAR, BUS]), torch.tensor([VEHICLE, CAR, BUS, SHIP])
    vocabulary = draw(4, 6, seed=2).requires_grad_()
    masks = list_broader(ids), list_broader(vocabulary_ids)
    contrast_vocabulary(draw(2, 6), vocabulary, vocabulary_ids, ids, SCALE, 0.1, *masks).backward()
    assert vocabulary.grad[0].abs().max() == 0 and vocabulary.grad[1:].abs().amin(dim=0).max() > 0
    assert vocabulary.grad.isfinite().all()
    contrast_vocabulary(draw(2, 6), vocabulary, vocabulary_ids, ids, SCALE, 0.1).backward()
    assert vocabulary.grad[0].abs().max() > 0


def test_pairs_of_a_concept_and_a_broader_one_are_not_negatives():
    ids = torch.tensor([[70, CAR], [71, VEHICLE], [72, SHIP], [73, -100]])
    left, right = draw(4, 5, seed=1).requires_grad_(), draw(4, 5, seed=2)
    contrast_pairs(left, right, ids, SCALE, list_broader(ids[:, 1])).backward()
    is_related = are_related(ids[:, 1].tolist(), ids[:, 1].tolist())
    assert is_related.sum() == 2
    again = left.detach().clone().requires_grad_()
    logits, own = (SCALE * again @ right.T).masked_fill(is_related, float("-inf")), torch.arange(4)
    ((cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2).backward()
    torch.testing.assert_close(left.grad, again.grad)
