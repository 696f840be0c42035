"""Laws of retrieval: recalls worked out by hand on painted pictures, both protocols, exact ranks."""

import tracemalloc

import numpy as np
import pytest
import torch
from painted import ColourModel, paint, paint_row
from PIL import Image
from refusals import refuses
from torch.nn.functional import normalize

from geoalign_hf.data.schema import build_rows
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.evaluation.metrics.retrieval import rank_own
from geoalign_hf.evaluation.retrieval import (
    CaptionRetrievalEvaluator,
    PhraseRetrievalEvaluator,
    find_copies,
    rank_in_blocks,
)


@pytest.fixture
def painter(processor):
    return ColourModel(processor), processor


def caption_row(colour: str, captions: list[str], mark: tuple = (0, 0)) -> dict:
    """A square of one colour, with a dot of another so that not all squares are one picture."""
    image = paint((64, 64), ((0, 0, 64, 64), colour))
    image.putpixel(mark, (9, 9, 9))
    return {"image": image, "captions": captions, "boxes": [], "phrases": [], "concepts": []}


def paint_captions():
    return build_rows(
        [
            caption_row("red", ["a red field", "a blue field"]),
            caption_row("green", ["a green field", "a green lake"]),
            caption_row("blue", ["a red lake"]),  # which is wrong
            caption_row("red", []),
        ]
    )


# Captions


def test_painted_captions_are_found_as_worked_out_by_hand(painter):
    scores = CaptionRetrievalEvaluator(paint_captions())(*painter)
    protocol = scores.pop("protocol")
    # Image to text: red meets "a red field" of its own and "a red lake" of another, a tie that counts against
    # it: place 2. Green: 1. Blue: the others' "a blue field" first, then "a red lake" among four equal ones.
    # Text to image: "a red field": 1; "a blue field": blue first, then red and green tie: 3; both green: 1;
    # "a red lake": 3.
    assert scores == {
        "image_to_text_recall_at_1": pytest.approx(1 / 3),
        "image_to_text_recall_at_5": 1.0,
        "image_to_text_recall_at_10": 1.0,
        "image_to_text_mean_recall": pytest.approx(7 / 9),
        "text_to_image_recall_at_1": pytest.approx(3 / 5),
        "text_to_image_recall_at_5": 1.0,
        "text_to_image_recall_at_10": 1.0,
        "text_to_image_mean_recall": pytest.approx(13 / 15),
        "mean_recall": pytest.approx((7 / 9 + 13 / 15) / 2),
        "num_images": 3,
        "num_captions": 5,
    }
    assert (protocol["captions"], protocol["prefix"], protocol["ties"]) == (
        "all",
        "",
        "count against the model",
    )
    assert protocol["num_rows_without_captions"] == 1


def test_a_repeated_caption_competes_in_the_protocol_all_and_counts_once_in_unique(painter):
    rows = build_rows(
        [caption_row("red", ["a red field"]), caption_row("red", ["a red field"], mark=(63, 63))]
    )
    kept = CaptionRetrievalEvaluator(rows)(*painter)
    unique = CaptionRetrievalEvaluator(rows, captions="unique")(*painter)
    assert kept["image_to_text_recall_at_1"] == kept["text_to_image_recall_at_1"] == 0.0
    assert unique["image_to_text_recall_at_1"] == unique["text_to_image_recall_at_1"] == 1.0
    assert (unique["num_images"], unique["num_captions"]) == (2, 1)
    assert unique["protocol"]["prefix"] == "a satellite image. "
    assert unique["image_to_text_recall_at_100"] == 1.0


def test_equal_pictures_count_once_and_share_their_captions(painter):
    rows = build_rows(
        [
            caption_row("red", ["a red field"]),
            caption_row("green", ["a green field"]),
            caption_row("red", ["a red lake", "a red field"]),
        ]
    )
    scores = CaptionRetrievalEvaluator(rows, captions="unique")(*painter)
    assert (scores["num_images"], scores["num_captions"]) == (2, 3)
    assert scores["image_to_text_recall_at_1"] == scores["text_to_image_recall_at_1"] == 1.0


def test_copies_are_pictures_with_the_same_pixels():
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), "blue")
    turned = Image.new("RGB", (2, 4), "red")  # the same bytes in another shape
    assert find_copies([red, blue, red.copy(), turned, blue.convert("RGBA")]) == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("captions", ["all", "unique"])
def test_recalls_are_those_of_a_full_sort(model, processor, toy_rows, captions):
    # Rows that share captions and a picture, as data sets do.
    rows = [*toy_rows, toy_rows[0] | {"captions": toy_rows[1]["captions"] + ["a road and a ship"]}]
    scores = CaptionRetrievalEvaluator(build_rows(rows), captions=captions)(model, processor)
    prefix = "" if captions == "all" else "a satellite image. "
    pairs = [(i, prefix + text) for i, row in enumerate(rows) for text in row["captions"]]
    if captions == "unique":
        pairs = sorted({(0 if i == len(toy_rows) else i, text) for i, text in pairs})
        images, texts = list(range(len(toy_rows))), sorted({text for _, text in pairs})
    else:
        images, texts = list(range(len(rows))), [text for _, text in pairs]
    with torch.no_grad():
        pixels = processor(images=[rows[i]["image"] for i in images], return_tensors="pt")
        tokens = processor(text=texts, return_tensors="pt", padding=True)
        cosines = model.embed_images(**pixels) @ model.embed_text(**tokens).T
    if captions == "all":
        own = np.array([[owner == image for owner, _ in pairs] for image in images])
    else:
        own = np.array([[(image, text) in pairs for text in texts] for image in images])
    for direction, values, is_own in (("image_to_text", cosines, own), ("text_to_image", cosines.T, own.T)):
        for k in (1, 5, 10):
            hits = []
            for row, mine in zip(values.tolist(), is_own, strict=True):
                order = sorted(range(len(row)), key=lambda i: (-round(row[i], 5), mine[i]))
                hits.append(any(mine[i] for i in order[:k]))
            assert scores[f"{direction}_recall_at_{k}"] == pytest.approx(np.mean(hits))


def test_an_unknown_protocol_and_rows_without_captions_are_refused(painter):
    with refuses("'some'", "('all', 'unique')"):
        CaptionRetrievalEvaluator(paint_captions(), captions="some")(*painter)
    with refuses("none of the 1 rows has one"):
        CaptionRetrievalEvaluator(build_rows([caption_row("red", [])]))(*painter)


# Phrases


def test_painted_phrases_are_found_as_worked_out_by_hand(painter):
    left, middle, right = (0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)
    rows = build_rows(
        [
            paint_row((90, 30), [(left, "red", "red"), (middle, "red", "red"), (right, "green", "red")],
                      hard_negatives=[["blue"], ["red sand"], []]),
            paint_row((90, 30), [(left, "blue", "blue"), (right, "red", "red")]),
            paint_row((90, 30), [(left, "green", "green")]),
        ]
    )  # fmt: skip
    scores = PhraseRetrievalEvaluator(rows)(*painter)
    # In the first image the two reds find "red" and the green one, painted red, does not; for "red" that one
    # ties with the reds, and "green" finds nothing. In the second image all is right.
    assert scores["region_to_phrase_in_image"] == 4 / 5
    assert scores["phrase_to_region_in_image"] == 2 / 4
    assert scores["region_to_phrase_or_negative_in_image"] == 1 / 2  # "red sand" is as red as "red"
    assert scores["chance_region_to_phrase_in_image"] == 1 / 2
    assert scores["chance_phrase_to_region_in_image"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert (scores["num_images_in_image"], scores["num_regions"], scores["num_phrases"]) == (2, 6, 3)
    assert scores["region_to_phrase_recall_at_1"] == 5 / 6
    # Over the split red meets three of its own and a tie; green one that is green; blue one that is blue.
    assert scores["phrase_to_region_recall_at_1"] == pytest.approx(2 / 3)
    assert scores["phrase_to_region_recall_at_5"] == 1.0


def test_an_ambiguous_phrase_counts_inside_no_image(painter):
    left, middle, right = (0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)
    regions = [(left, "red", "red"), (middle, "blue", "blue"), (right, "green", "red")]
    rows = build_rows([paint_row((90, 30), regions, ambiguous=[False, False, True])])
    scores = PhraseRetrievalEvaluator(rows)(*painter)
    assert scores["region_to_phrase_in_image"] == 1.0  # the third region, painted red, asks for no phrase
    assert scores["phrase_to_region_in_image"] == 1 / 2  # but it is a candidate, and ties for "red"
    assert scores["chance_region_to_phrase_in_image"] == 1 / 2
    assert scores["chance_phrase_to_region_in_image"] == 1 / 3
    rows = build_rows([paint_row((90, 30), regions, ambiguous=[False, True, True])])
    assert PhraseRetrievalEvaluator(rows)(*painter)["num_images_in_image"] == 0


@pytest.mark.parametrize("source", ["image", "crop"])
def test_phrase_retrieval_scores_equal_plain_loops(model, processor, rows, source):
    embedder = Embedder(model, processor)
    regions = embedder.embed_regions(rows, source)
    phrases = [phrase for of_row in rows["phrases"] for phrase in of_row]
    of_image = [i for i, of_row in enumerate(rows["phrases"]) for _ in of_row]
    texts = dict(zip(sorted(set(phrases)), embedder.embed_text(sorted(set(phrases))), strict=True))

    def find(region: int, candidates) -> bool:
        """Whether the region's own phrase beats all other candidates."""
        own = float(regions[region] @ texts[phrases[region]])
        return all(
            own > float(regions[region] @ texts[text]) + 1e-6 for text in candidates - {phrases[region]}
        )

    inside = []
    for region, image in enumerate(of_image):
        candidates = set(rows[image]["phrases"])
        if len(candidates) > 1:
            inside.append(find(region, candidates))
    scores = PhraseRetrievalEvaluator(rows, region_source=source)(model, processor)
    assert scores["region_to_phrase_in_image"] == pytest.approx(np.mean(inside))
    over = [find(region, set(texts)) for region in range(len(phrases))]
    assert scores["region_to_phrase_recall_at_1"] == pytest.approx(np.mean(over))
    assert scores["protocol"]["context"] == {"image": None, "crop": 1.5}[source]


def test_rows_without_regions_are_refused(painter):
    with refuses("none of the 1 rows has a box"):
        PhraseRetrievalEvaluator(build_rows([paint_row((10, 10), [])]))(*painter)


# Blocks


@pytest.mark.parametrize("chunk", [1, 50, 333, 10**6])
def test_ranks_do_not_depend_on_the_block_size(chunk):
    generator = torch.Generator().manual_seed(0)
    queries = normalize(torch.randn(40, 8, generator=generator), dim=-1)
    candidates = normalize(torch.randn(30, 8, generator=generator), dim=-1)
    candidates[10:20] = candidates[:10]  # ties
    own = [[i % 30, (3 * i) % 30] for i in range(40)]
    own = [sorted(set(mine)) for mine in own]
    expected = rank_own((queries.double() @ candidates.double().T).numpy(), own)
    assert rank_in_blocks(queries, candidates, own, chunk).tolist() == expected.tolist()


def test_memory_does_not_grow_with_the_number_of_queries():
    def measure(num_queries: int) -> int:
        queries, candidates = torch.zeros(num_queries, 4), torch.zeros(500, 4)
        own = [[0]] * num_queries
        tracemalloc.start()
        rank_in_blocks(queries, candidates, own, block_size=50_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - 8 * num_queries  # the ranks themselves

    assert measure(20_000) < 2 * measure(1_000)


@pytest.mark.slow
def test_a_hundred_thousand_captions_against_thousands_of_images_fit_in_memory():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(4000, 64, generator=generator), dim=-1)
    owners = torch.arange(100_000) % 4000
    texts = normalize(images[owners] + 0.05 * torch.randn(100_000, 64, generator=generator), dim=-1)
    tracemalloc.start()
    ranks = rank_in_blocks(texts, images, owners.unsqueeze(-1).tolist())
    assert tracemalloc.get_traced_memory()[1] < 400e6  # all scores at once are 1.6e9 bytes
    tracemalloc.stop()
    sample = range(0, 100_000, 9973)
    for i in sample:
        cosines = images @ texts[i]
        assert ranks[i] == 1 + int((cosines > cosines[owners[i]] + 1e-5).sum())
