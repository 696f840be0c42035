"""Laws of the collator: index tensors lead back to the words, and ids know equal words."""

import hashlib
import re

import pytest
import torch
from PIL import Image

from geoalign_hf.data.collator import CROP_KEYS, LOSS_KEYS, RowCollator, hash_words

R = 6
TEMPLATES = ("a photo of {}.", "{} from above.")
WORDS = {name: f"{name}_index" for name in ("caption", "description", "phrase", "concept")}


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def make_row(boxes=(), phrases=(), concepts=(), size=(40, 20), **columns) -> dict:
    row = {"image": Image.new("RGB", size), "boxes": [list(box) for box in boxes]}
    return row | {"phrases": list(phrases), "concepts": list(concepts)} | columns


@pytest.fixture
def collate(processor):
    return RowCollator(processor, R, TEMPLATES)


@pytest.fixture
def read(processor):
    """Decode a row of `input_ids`; spaces go, since CLIP's tokenizer adds its own."""

    def decode(input_ids):
        return processor.tokenizer.decode(input_ids, skip_special_tokens=True).replace(" ", "")

    return decode


def unpack(batch) -> list[torch.Tensor]:
    """The token ids of every text, by its number."""
    return [batch["input_ids"][batch["text_ids"] == n] for n in range(int(batch["text_ids"].max()) + 1)]


def squeeze(words: str) -> str:
    return words.lower().replace(" ", "")


def test_every_index_leads_back_to_its_words(collate, read, toy_rows):
    batch = collate(toy_rows)
    texts = [read(tokens) for tokens in unpack(batch)]
    for i, row in enumerate(toy_rows):
        assert texts[batch["caption_index"][i]] == squeeze(row["captions"][0])
        description = texts[batch["description_index"][i]]
        assert squeeze(row["description"]).startswith(description) and len(description) >= 60
        for r, (phrase, concept) in enumerate(zip(row["phrases"], row["concepts"], strict=True)):
            assert texts[batch["phrase_index"][i, r]] == squeeze(phrase)
            found = [texts[n] for n in batch["concept_index"][i, r]]
            assert found == [squeeze(template.format(concept)) for template in TEMPLATES]
            negatives = [texts[n] for n in batch["negative_index"][i, r] if n >= 0]
            assert negatives == [squeeze(negative) for negative in row["hard_negatives"][r]]
        assert (batch["negative_index"][i, len(row["boxes"]) :] == -100).all()


def test_equal_words_are_tokenized_once_whatever_they_describe(collate):
    ship = {"boxes": [[0, 0, 9, 9]] * 2, "concepts": ["ship"] * 2}
    row = make_row(**ship, phrases=["a ship", "ship from above."], captions=["a ship"], description="a ship")
    batch = collate([row | {"hard_negatives": [["ship from above."], []]}] * 2)
    # "a ship", "ship from above." and "a photo of ship."
    assert len(unpack(batch)) == 3
    number = batch["caption_index"][0]
    assert (batch["caption_index"] == number).all() and (batch["description_index"] == number).all()
    assert (batch["phrase_index"][:, 0] == number).all()
    assert (batch["phrase_index"][0, 1] == batch["concept_index"][1, 0, 1]).all()
    assert batch["negative_index"][:, 0, 0].tolist() == batch["phrase_index"][:, 1].tolist()


def test_a_vocabulary_is_in_every_batch_once_with_the_ids_and_texts_of_the_regions_concepts(
    processor, read, toy_rows
):
    names = sorted({concept for row in toy_rows for concept in row["concepts"]})
    vocabulary = [*names, names[0], "", "an iceberg"]
    for rows in (toy_rows[:3], [toy_rows[0] | {"boxes": [], "phrases": [], "concepts": []}]):
        batch = RowCollator(processor, R, TEMPLATES, vocabulary=vocabulary)(rows)
        texts = [read(tokens) for tokens in unpack(batch)]
        assert len(texts) == len(set(texts))
        found = [[texts[n] for n in of_concept] for of_concept in batch["vocabulary_index"]]
        unique = [*names, "an iceberg"]
        assert found == [[squeeze(template.format(name)) for template in TEMPLATES] for name in unique]
        assert batch["vocabulary_ids"].tolist() == [hash_words(name) for name in unique]
        for i, row in enumerate(rows):
            for r, concept in enumerate(row["concepts"]):
                column = (batch["vocabulary_ids"] == batch["concept_ids"][i, r]).nonzero().item()
                assert unique[column] == concept
                assert torch.equal(batch["vocabulary_index"][column], batch["concept_index"][i, r])


def test_without_the_concept_term_a_vocabulary_costs_nothing(processor, toy_rows):
    kinds = {"caption", "phrase"}
    batch = RowCollator(processor, R, TEMPLATES, kinds, ["an iceberg"])(toy_rows)
    without = RowCollator(processor, R, TEMPLATES, kinds)(toy_rows)
    assert batch.keys() == without.keys() and torch.equal(batch["input_ids"], without["input_ids"])


def test_a_concept_that_the_vocabulary_lacks_is_refused_by_name(processor):
    row = make_row([[0, 0, 9, 9]], ["a ship"], ["ship"], row_id=7)
    with pytest.raises(ValueError, match=r"\['ship'\] of row 7 .* 1 concepts"):
        RowCollator(processor, R, vocabulary=["tank"])([row])


def test_no_text_of_a_batch_is_there_twice(collate, toy_rows):
    texts = [tuple(tokens.tolist()) for tokens in unpack(collate(toy_rows + toy_rows))]
    assert len(set(texts)) == len(texts) == len(unpack(collate(toy_rows)))


def test_texts_that_no_term_reads_are_not_encoded(processor, read, toy_rows):
    batch = RowCollator(processor, R, TEMPLATES, text_kinds={"caption"})(toy_rows)
    found = {read(tokens) for tokens in unpack(batch)}
    assert found == {squeeze(row["captions"][0]) for row in toy_rows}
    for name in ("description", "phrase", "concept"):  # by which equal ones are known, all the same
        assert torch.equal(
            batch[f"{name}_ids"], RowCollator(processor, R, TEMPLATES)(toy_rows)[f"{name}_ids"]
        )
    assert batch["negative_index"].shape == (8, R, 0)


def test_rows_keep_their_ids(collate, toy_rows):
    assert collate([row | {"row_id": 7 + i} for i, row in enumerate(toy_rows)])["row_ids"].tolist() == list(
        range(7, 15)
    )
    assert collate(toy_rows)["row_ids"].tolist() == [-100] * 8


@pytest.mark.parametrize("form", ["boxes", "quads"])
def test_a_crop_shows_its_region_and_knows_where_in_it_the_region_lies(collate, form):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 4, 20, 12))
    quad = [[10, 4], [20, 4], [20, 12], [10, 12]]
    row = make_row([[0, 0, 5, 5], [10, 4, 20, 12]], ["a", "b"], ["a", "b"], captions=["c"])
    row |= {"image": image, "crops": [1]} | ({"quads": [quad, quad]} if form == "quads" else {})
    batch = collate([row | {"crops": []}, row])
    assert batch["crop_index"].tolist() == [R + 1]
    white = batch["crop_values"][0]
    assert (white == white.amax()).float().mean() > 1 / 3 - 1e-6  # each channel has its own highest value
    assert (white.flatten(1).amax(dim=1) == white.flatten(1).amin(dim=1)).all()
    whole = [0.0, 0.0, 1.0, 1.0] if form == "boxes" else [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    assert batch[f"crop_{form}"].tolist() == [[whole]]


def test_a_region_between_pixels_lies_inside_its_crop(collate):
    row = make_row([[10.5, 4.0, 19.5, 12.0]], ["a"], ["a"], captions=["c"], crops=[0])
    assert collate([row])["crop_boxes"][0, 0].tolist() == pytest.approx([0.05, 0.0, 0.95, 1.0])


def test_without_crops_in_its_rows_a_batch_has_none_and_with_empty_ones_it_has_none_of_them(collate):
    row = make_row([[0, 0, 9, 9]], ["a"], ["a"], captions=["c"])
    assert not collate([row]).keys() & CROP_KEYS
    batch = collate([row | {"crops": []}])
    assert batch["crop_values"].shape == (0, *batch["pixel_values"].shape[1:])
    assert batch["crop_boxes"].shape == (0, 1, 4) and batch["crop_index"].shape == (0,)


def test_ids_are_equal_for_equal_words_alone(collate, toy_rows):
    batch = collate(toy_rows)
    for name in ("phrase", "concept"):
        words = {(i, r): word for i, row in enumerate(toy_rows) for r, word in enumerate(row[f"{name}s"])}
        for one, first in words.items():
            for other, second in words.items():
                assert (batch[f"{name}_ids"][one] == batch[f"{name}_ids"][other]) == (first == second)


def test_ids_are_the_hash_of_the_words(collate, toy_rows):
    batch = collate(toy_rows)
    assert batch["caption_ids"].tolist() == [hash_words(row["captions"][0]) for row in toy_rows]
    assert batch["description_ids"].tolist() == [hash_words(row["description"]) for row in toy_rows]


def test_the_hash_of_words_is_the_same_in_every_run():
    # Not Python's hash, which each process salts: 63 bits of blake2b, so that int64 holds it.
    assert hash_words("a ship") == int(hashlib.blake2b(b"a ship", digest_size=8).hexdigest(), 16) // 2
    assert all(0 <= hash_words(str(number)) < 2**63 for number in range(200))


def test_where_there_are_no_words_ids_are_minus_100(collate):
    row = make_row([[0, 0, 9, 9]], ["a ship"], ["ship"], captions=[], description=None)
    batch = collate([row, make_row(captions=["nothing"])])
    assert batch["caption_ids"].tolist() == [-100, hash_words("nothing")]
    assert batch["description_ids"].tolist() == [-100, -100]
    for name, words in (("phrase_ids", "a ship"), ("concept_ids", "ship")):
        assert batch[name].tolist() == [[hash_words(words)] + [-100] * (R - 1), [-100] * R]


def test_every_batch_has_max_regions_and_the_mask_counts_the_real_ones(collate, toy_rows):
    for rows in (toy_rows, toy_rows[:1], [make_row(captions=["nothing"])]):
        batch, B = collate(rows), len(rows)
        assert batch["region_mask"].sum(dim=1).tolist() == [len(row["boxes"]) for row in rows]
        assert batch["region_mask"].shape == batch["phrase_ids"].shape == batch["concept_ids"].shape == (B, R)
        assert batch["phrase_index"].shape == (B, R) and batch["concept_index"].shape == (B, R, 2)
        assert ((batch["phrase_ids"] >= 0) == batch["region_mask"]).all()


def test_boxes_enter_in_shares_of_the_image(collate):
    row = make_row([[10, 5, 30, 20]], ["a ship"], ["ship"])
    batch = collate([row])
    assert batch["region_boxes"][0, 0].tolist() == [0.25, 0.25, 0.75, 1.0]
    assert batch["region_boxes"][0, 1:].tolist() == [[0.0, 0.0, 1.0, 1.0]] * (R - 1)


def test_quads_take_the_place_of_boxes_where_every_row_with_regions_has_them(collate):
    quad = [[10, 0], [20, 5], [10, 10], [0, 5]]
    row = make_row([[0, 0, 20, 10]], ["a ship"], ["ship"], quads=[quad])
    batch = collate([row, make_row(captions=["nothing"], quads=[])])
    assert "region_boxes" not in batch
    assert batch["region_quads"][0, 0].tolist() == [[0.25, 0.0], [0.5, 0.25], [0.25, 0.5], [0.0, 0.25]]
    assert batch["region_mask"].sum(dim=1).tolist() == [1, 0]


def test_one_row_without_quads_makes_boxes_of_all(collate):
    quad = [[10, 0], [20, 5], [10, 10], [0, 5]]
    row = make_row([[0, 0, 20, 10]], ["a ship"], ["ship"])
    batch = collate([row | {"quads": [quad]}, row | {"quads": []}, row])
    assert "region_quads" not in batch
    assert batch["region_boxes"][:, 0].tolist() == [[0.0, 0.0, 0.5, 0.5]] * 3


def test_a_batch_without_any_region_has_boxes_that_are_padding(collate):
    batch = collate([make_row(captions=["nothing"], quads=[])] * 2)
    assert not batch["region_mask"].any() and batch["region_boxes"].shape == (2, R, 4)


def test_the_model_takes_all_but_the_loss_keys(processor, model, toy_rows):
    batch = RowCollator(processor, R, vocabulary={c for row in toy_rows for c in row["concepts"]})(toy_rows)
    output = model(**{key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS})
    assert batch.keys() > LOSS_KEYS
    assert output.text_embeds.shape[0] == len(unpack(batch))
    assert output.region_embeds.shape[:2] == (8, R)


def test_the_order_of_rows_is_the_order_of_the_batch(collate, read, toy_rows):
    there, back = collate(toy_rows), collate(toy_rows[::-1])
    for name in ("pixel_values", "region_quads", "region_mask", "caption_ids", "phrase_ids", "concept_ids"):
        assert torch.equal(there[name], back[name].flip(0)), name
    texts = [[read(tokens) for tokens in unpack(batch)] for batch in (there, back)]
    for index in WORDS.values():
        is_real = there["region_mask"] if there[index].ndim > 1 else slice(None)
        first, second = there[index][is_real].flatten(), back[index].flip(0)[is_real].flatten()
        assert [texts[0][n] for n in first] == [texts[1][n] for n in second], index


def test_a_text_longer_than_the_text_tower_is_cut(collate, model):
    batch = collate([make_row(captions=["ship " * 200])])
    assert batch["input_ids"].shape[1] == model.config.text_config.max_position_embeddings


def test_more_regions_than_max_regions_are_refused(processor):
    row = make_row([[0, 0, 9, 9]] * 3, ["a ship"] * 3, ["ship"] * 3)
    with refuses(
        "image 1 has 3 boxes, but max_regions is 2. Raise max_regions, or choose the regions to keep."
    ):
        RowCollator(processor, 2)([make_row(captions=["nothing"]), row])


def test_regions_that_cannot_be_used_are_refused(collate):
    row = make_row([[0, 0, 9, 9], [9, 0, 3, 9]], ["a ship"] * 2, ["ship"] * 2)
    with refuses(
        "boxes[0][1] = [9.0, 0.0, 3.0, 9.0] has x1 <= x0. Boxes are xyxy pixels of the image as given; "
        "convert COCO boxes with xywh_to_xyxy first."
    ):
        collate([row])


def test_a_batch_without_any_words_keeps_the_text_tower_in_step(collate, model):
    batch = collate([make_row(), make_row(captions=[], description=None)])
    output = model(**{key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS})
    assert output.text_embeds.shape[0] == 1
    assert all((batch[f"{name}_ids"] == -100).all() for name in WORDS)


def test_a_text_without_words_is_refused(collate):
    with refuses("text[0] is empty. Every text needs at least one word; remove this one."):
        collate([make_row(captions=["  "])])


def test_a_batch_names_the_broader_concepts_of_each_region_and_of_the_vocabulary(processor, toy_rows):
    row = toy_rows[0] | {"concepts": ["small car", *toy_rows[0]["concepts"][1:]]}
    names = list(dict.fromkeys([*row["concepts"], "vehicle", "bus"]))
    batch = RowCollator(processor, 8, vocabulary=names)([row])
    above = {hash_words(name) for name in ("car", "small vehicle", "vehicle")}
    assert set(batch["concept_broader"][0, 0].tolist()) - {-100} == above
    assert (batch["concept_broader"][0, len(row["boxes"]) :] == -100).all()
    of_bus = batch["vocabulary_broader"][names.index("bus")].tolist()
    assert hash_words("vehicle") in of_bus and hash_words("small vehicle") not in of_bus
