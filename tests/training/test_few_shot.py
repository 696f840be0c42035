"""Laws of few-shot adaptation: which boxes are drawn, what the closed forms compute, what is refused."""

import numpy as np
import pytest
from refusals import refuses

from geoalign_hf.data.schema import list_concepts
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.few_shot import (
    FewShotConfig,
    adapt_by_lora,
    draw_shots,
    fit_ridge,
    make_prototypes,
    score_few_shot,
    split_concepts,
    split_rows,
    summarize_seeds,
    write_table,
)
from geoalign_hf.training.lora import AdapterConfig


def list_boxes(rows) -> list[tuple]:
    return [
        (source, concept, *box)
        for source, concepts, boxes in zip(rows["source"], rows["concepts"], rows["boxes"], strict=True)
        for concept, box in zip(concepts, boxes, strict=True)
    ]


# Draws


@pytest.fixture
def sourced(rows):
    """The toy rows, each with a name of its own."""
    return rows.remove_columns("source").add_column("source", [f"{i}.png" for i in range(len(rows))])


def test_a_draw_has_the_given_number_of_different_boxes_of_each_concept_and_no_others(sourced):
    concepts = list_concepts(sourced)[:2]
    drawn = draw_shots(sourced, concepts, 2, seed=0)
    assert drawn["concepts"] == [[concepts[0]]] * 2 + [[concepts[1]]] * 2
    boxes = list_boxes(drawn)
    assert len(set(boxes)) == 4 and set(boxes) <= set(list_boxes(sourced))
    assert not any(drawn["captions"]) and not any(drawn["description"])


def test_a_smaller_draw_is_part_of_a_larger_one_whatever_other_concepts_are_drawn(sourced):
    first, second = list_concepts(sourced)[:2]
    one = list_boxes(draw_shots(sourced, [first], 1, seed=3))
    two = list_boxes(draw_shots(sourced, [second, first], 2, seed=3))
    assert one == two[2:3]


def test_seeds_draw_differently_and_each_the_same_again(sourced):
    concepts = list_concepts(sourced)
    draws = [list_boxes(draw_shots(sourced, concepts, 1, seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(map(tuple, draws))) > 1


def test_more_boxes_than_there_are_is_refused(sourced):
    concept = list_concepts(sourced)[0]
    count = sum(names.count(concept) for names in sourced["concepts"])
    with refuses(f"{count + 1} boxes of {concept!r}", f"the rows have {count}"):
        draw_shots(sourced, [concept], count + 1, seed=0)


def test_a_split_loses_no_row_and_repeats_none(sourced):
    train, test = split_rows(sourced)
    assert sorted([*train["source"], *test["source"]]) == sourced["source"] and len(test) == 2


def test_concepts_are_split_into_new_and_old_ones():
    known = ["bridge", "road", "ship"]
    assert split_concepts(known, None, None) == (known, [])
    assert split_concepts(known, None, ["road"]) == (["bridge", "ship"], ["road"])
    assert split_concepts(known, ["ship"], ["road"]) == (["ship"], ["road"])
    with refuses("['boat']", "['bridge', 'road', 'ship']"):
        split_concepts(known, ["boat"], None)
    with refuses("['ship']", "new", "old"):
        split_concepts(known, ["ship"], ["ship"])
    with refuses("all concepts, ['bridge', 'road', 'ship'], are listed as old"):
        split_concepts(known, None, known)


@pytest.mark.parametrize("shots", ["", "0", "1,x", "1.5", "-1"])
def test_shots_are_whole_numbers(shots):
    with refuses(f"shots is {shots!r}", "1,4,16"):
        FewShotConfig(shots=shots)
    assert FewShotConfig(shots="16, 1,4").list_shots() == [1, 4, 16]


def test_settings_out_of_range_are_refused():
    with refuses("ridge is 0", "above 0"):
        FewShotConfig(ridge=0)
    with refuses("num_seeds is 0", "at least 1"):
        FewShotConfig(num_seeds=0)


# Closed forms


def test_a_prototype_is_the_mean_at_unit_length():
    embeds = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    prototypes = make_prototypes(embeds, np.array([0, 0, 1]))
    assert np.allclose(prototypes, [[2 / 5**0.5, 1 / 5**0.5, 0], [0, 0, 1]])


def test_the_ridge_probe_is_least_squares_on_rows_with_the_ridge_below_them():
    generator = np.random.default_rng(0)
    embeds, references = generator.normal(size=(7, 4)), np.array([0, 1, 2, 0, 1, 2, 2])
    below = np.concatenate([embeds, 0.3**0.5 * np.eye(4)])
    targets = np.concatenate([np.eye(3)[references], np.zeros((4, 3))])
    expected = np.linalg.lstsq(below, targets, rcond=None)[0].T
    assert np.allclose(fit_ridge(embeds, references, 0.3), expected, atol=1e-12)


# Scores


def test_scores_by_hand():
    # New: ship, car. Old: road. A ship taken for a road is right among the new, and wrong among all.
    scores = np.array([[0.5, 0.1, 0.9], [0.2, 0.8, 0.1], [0.3, 0.2, 0.9], [0.8, 0.1, 0.7]])
    found = score_few_shot(scores, np.array([0, 1, 2, 2]), ["ship", "car", "road"], 2)
    assert found == {
        "new_accuracy_micro": 1.0, "new_accuracy_macro": 1.0,
        "all_accuracy_micro": 0.5, "all_accuracy_macro": 0.5,
        "old_accuracy_micro": 1.0, "old_accuracy_macro": 1.0,
        "kept_accuracy_micro": 0.5, "kept_accuracy_macro": 0.5,
    }  # fmt: skip


def test_without_old_concepts_there_are_scores_of_new_ones_alone():
    assert set(score_few_shot(np.eye(2), np.array([0, 1]), ["ship", "car"], 2)) == {
        "new_accuracy_micro",
        "new_accuracy_macro",
    }


def test_the_table_has_the_mean_and_the_spread():
    metrics = {
        "zero-shot": summarize_seeds([{"new_accuracy_micro": 0.25}]),
        "LoRA, 1-shot": summarize_seeds([{"new_accuracy_micro": 0.5}, {"new_accuracy_micro": 0.7}]),
    }
    assert write_table(metrics) == (
        "| method | new micro |\n| --- | --- |\n| zero-shot | 25.0 |\n| LoRA, 1-shot | 60.0 ± 14.1 |"
    )


# LoRA


@pytest.mark.slow
def test_lora_learns_the_boxes_it_is_shown_and_leaves_the_base_as_it_was(model, processor, sourced, tmp_path):
    names = list_concepts(sourced)
    boxes = draw_shots(sourced, names[:2], 2, seed=0)
    before = Embedder(model, processor).embed_regions(boxes)
    config, adapters = (
        FewShotConfig(num_steps=120, learning_rate=3e-3),
        AdapterConfig(lora="vision,text", lora_rank=4),
    )
    embedder = Embedder(adapt_by_lora(model, processor, boxes, names, config, adapters, tmp_path), processor)
    texts = embedder.embed_concepts(names, CONCEPT_TEMPLATES)
    assert (embedder.embed_regions(boxes) @ texts.T).argmax(dim=1).tolist() == [0, 0, 1, 1]
    with embedder.model.disable_adapter():
        assert embedder.embed_regions(boxes).equal(before)


def test_lora_without_a_tower_is_refused(model, processor, sourced, tmp_path):
    names = list_concepts(sourced)
    boxes = draw_shots(sourced, names, 1, seed=0)
    with refuses("lora is ''", "vision, text or vision,text"):
        adapt_by_lora(model, processor, boxes, names, FewShotConfig(), AdapterConfig(), tmp_path)
