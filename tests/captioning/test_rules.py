"""Laws of generated text: it is true of the scene, and the answers of a model are kept."""

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from geoalign_hf.captioning.attributes import find_facts
from geoalign_hf.captioning.grammar import COLOURS, NUMBERS, pluralize, write_number
from geoalign_hf.captioning.phrases import is_distinguishing, list_phrases, match_phrase
from geoalign_hf.captioning.rules import COUNT_FRAMES, describe_row, word_region
from geoalign_hf.captioning.vlm import QUESTIONS, Question, ask_model, name_row
from geoalign_hf.readers.skipped import SkipReport

CONCEPTS = ("ship", "storage tank", "bridge", "airplane")


def draw_scene(seed: int) -> dict:
    """Some filled boxes of four concepts on gray, none on another; the fill is known."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(150, 400, 2)
    image, boxes, concepts, colours = Image.new("RGB", (width, height), (90, 95, 90)), [], [], []
    for _ in range(int(rng.integers(1, 40))):
        w, h = rng.integers(8, 50, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        if any(x < b[2] + 4 and b[0] < x + w + 4 and y < b[3] + 4 and b[1] < y + h + 4 for b in boxes):
            continue
        colours.append(str(rng.choice([*COLOURS, "gray"])))
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=colours[-1])
        boxes.append([float(x), float(y), float(x + w), float(y + h)])
        concepts.append(str(rng.choice(CONCEPTS)))
    return {"image": image, "boxes": boxes, "concepts": concepts, "source": f"{seed}.png", "colours": colours}


def lies(box, size, place: str) -> bool:
    """Return whether the middle of a box lies in the half, or the center, that a place names."""
    x, y = (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]
    halves = {
        "left": x < 0.5,
        "right": x > 0.5,
        "upper": y < 0.5,
        "lower": y > 0.5,
        "top": y < 0.5,
        "bottom": y > 0.5,
    }
    if place == "center":
        return abs(x - 0.5) < 0.2 and abs(y - 0.5) < 0.2
    return all(halves[word] for word in place.split())


SEEDS = range(120)


def test_every_part_of_a_phrase_is_true_of_its_region():
    said = set()
    for seed in SEEDS:
        row, rng = draw_scene(seed), np.random.default_rng(seed)
        facts, size = find_facts(row), row["image"].size
        for r in range(len(facts)):
            parts = match_phrase(word_region(facts, r, rng), facts.concepts[r]).groupdict()
            said |= {name for name, words in parts.items() if words}
            kind = [s for s, concept in enumerate(row["concepts"]) if concept == row["concepts"][r]]
            if parts["colour"]:
                assert parts["colour"] == row["colours"][r]
            if parts["place"]:
                assert lies(row["boxes"][r], size, parts["place"].split("the ")[1])
            if parts["size"]:
                longer = sorted(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (row["boxes"][s] for s in kind))
                own = max(np.diff(np.reshape(row["boxes"][r], (2, 2)), axis=0)[0])
                assert own > longer[0] if parts["size"] == "large" else own < longer[-1]
            if parts["number"]:
                assert 2 <= NUMBERS.index(parts["number"]) <= len(kind)
            if parts["relation"]:
                others = [
                    s for s, concept in enumerate(row["concepts"]) if concept == parts["neighbour_noun"]
                ]
                middle = sum(row["boxes"][r][::2])
                sides = [np.sign(sum(row["boxes"][s][::2]) - middle) for s in others]
                wanted = {"to the left of": 1, "to the right of": -1, "next to": None}[parts["relation"]]
                assert others and (wanted is None or wanted in sides)
            longest = {s: max(np.diff(np.reshape(row["boxes"][s], (2, 2)), axis=0)[0]) for s in kind}
            if parts["extreme"]:
                choose = max if parts["extreme"] == "largest" else min
                assert choose(kind, key=longest.get) == r
            if parts["end"]:
                axis = 0 if "the left" in parts["end"] or "the right" in parts["end"] else 1
                choose = min if parts["end"].endswith(("left", "top")) else max
                assert choose(kind, key=lambda s: sum(row["boxes"][s][axis::2])) == r
    assert said >= {"colour", "place", "size", "number", "relation", "extreme", "end"}


def test_a_sentence_says_the_of_the_only_region_of_a_concept_and_one_of_the_of_several():
    relation = re.compile(r"(\S.*) is (?:next to|to the (?:left|right) of) (.*)\.")
    found = {True: 0, False: 0}
    for seed in SEEDS:
        row = draw_scene(seed)
        text = describe_row(row, find_facts(row), np.random.default_rng(seed))["description"]
        for sentence in text.split(". "):
            nouns = relation.fullmatch(sentence.rstrip(".") + ".")
            for noun in nouns.groups() if nouns else ():
                concept = next(name for name in CONCEPTS if noun.endswith((name, pluralize(name))))
                is_only = row["concepts"].count(concept) == 1
                found[is_only] += 1
                assert noun.lower() == (f"the {concept}" if is_only else f"one of the {pluralize(concept)}")
    assert min(found.values()) > 20


def refers_to(row, parts, s) -> bool:
    """Return whether region s fits the parts of a phrase, by what was drawn."""
    if parts["colour"] and row["colours"][s] != parts["colour"]:
        return False
    return not parts["place"] or lies(row["boxes"][s], row["image"].size, parts["place"].split("the ")[1])


def test_a_phrase_that_is_not_ambiguous_fits_no_other_region():
    kept = 0
    for seed in SEEDS:
        row = draw_scene(seed)
        row = describe_row(row, find_facts(row), np.random.default_rng(seed))
        for r, phrase in enumerate(row["phrases"]):
            if row["ambiguous"][r]:
                continue
            kept += 1
            parts = match_phrase(phrase, row["concepts"][r]).groupdict()
            others = [s for s, name in enumerate(row["concepts"]) if s != r and name == row["concepts"][r]]
            assert row["phrases"].count(phrase) == 1
            if not (parts["extreme"] or parts["end"] or parts["size"] or parts["relation"]):
                assert not any(refers_to(row, parts, s) for s in others), phrase
    assert kept > 500


def test_equal_regions_share_an_ambiguous_phrase_and_synonyms_are_ambiguous():
    row = {"image": Image.new("RGB", (90, 90)), "boxes": [[40, 40, 50, 50]] * 2, "concepts": ["ship"] * 2}
    described = describe_row(row, find_facts(row), np.random.default_rng(0))
    assert described["ambiguous"] == [True, True]
    facts = find_facts(row | {"concepts": ["ship", "boat"]})
    assert not is_distinguishing(facts, "a ship", 0)
    assert is_distinguishing(find_facts(row | {"concepts": ["ship", "bridge"]}), "a ship", 0)
    assert not is_distinguishing(
        find_facts(row | {"concepts": ["ship", "bridge"], "unboxed": ["ship"]}), "a ship", 0
    )


def test_plain_phrases_say_one_thing_besides_the_concept():
    kinds = set()
    for seed in SEEDS:
        row = draw_scene(seed)
        facts = find_facts(row)
        described = describe_row(row, facts, np.random.default_rng(seed), one_attribute=True)
        for r, phrase in enumerate(described["phrases"]):
            listed = {words: kind for kind, words in list_phrases(facts, r)}
            kinds.add(listed[phrase])
            parts = match_phrase(phrase, row["concepts"][r]).groupdict()
            said = [name for name in ("colour", "place", "size", "number", "relation") if parts[name]]
            assert len(said) <= 1
    assert kinds == {"concept", "colour", "size", "count", "position", "relation"}


@pytest.mark.parametrize("seed", range(20))
def test_images_of_false_colour_or_one_band_get_no_words_of_colour(seed):
    row, rng = draw_scene(seed), np.random.default_rng(seed)
    for facts in (
        find_facts(row, natural_colour=False),
        find_facts(row | {"image": row["image"].convert("L")}),
    ):
        described = describe_row(row, facts, rng)
        words = " ".join([*described["captions"], described["description"], *described["phrases"]])
        assert not re.search(rf"\b({'|'.join(COLOURS)})\b", words)


def test_captions_have_many_frames_and_no_digits():
    captions = set()
    for seed in range(60):
        row = draw_scene(seed)
        described = describe_row(row, find_facts(row), np.random.default_rng(seed))
        assert not re.search(r"\d", " ".join([*described["captions"], described["description"]]))
        captions.add(described["captions"][0])
    starts = {frame.partition("{}")[0] for frame in COUNT_FRAMES} - {""}
    assert len(starts) >= 6 and all(
        any(caption.startswith(start) for caption in captions) for start in starts
    )


def test_captions_and_description_count_what_the_boxes_show():
    for seed in SEEDS:
        row = draw_scene(seed)
        row = describe_row(row, find_facts(row), np.random.default_rng(seed))
        for words in (row["captions"][0], row["description"].split(".")[0]):
            for concept in set(row["concepts"]):
                number = row["concepts"].count(concept)
                noun = concept if number == 1 else pluralize(concept)
                counted = re.search(rf"([\w-]+) {noun}\b", words)
                word = write_number(number)
                assert counted[1] in (
                    {"a", "an"} if number == 1 else {word, "many"} if number >= 10 else {word}
                )


def test_what_boxes_do_not_count_is_not_counted():
    for seed in SEEDS:
        row = draw_scene(seed) | {"unboxed": ["ship"]}
        row = describe_row(row, find_facts(row), np.random.default_rng(seed))
        words = ". ".join([*row["captions"], row["description"], *row["phrases"]])
        assert not re.search(rf"\b({'|'.join(NUMBERS[1:])}|many|\d+)( \w+)? ships\b", words)


def test_the_seed_and_nothing_else_decides_the_words():
    row = draw_scene(1)
    first, again, other = (
        describe_row(row, find_facts(row), np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["phrases"] != other["phrases"]


def test_captions_of_people_stay_and_come_first():
    row = draw_scene(3) | {"captions": ["my own"], "description": "my own long one"}
    described = describe_row(row, find_facts(row), np.random.default_rng(0))
    assert described["captions"][0] == "my own" and len(described["captions"]) > 1
    assert described["description"] == "my own long one"


def test_a_row_of_three_white_tanks_is_called_so():
    image, boxes = (
        Image.new("RGB", (200, 200), (90, 95, 90)),
        [[x, 10.0, x + 15, 25.0] for x in (10.0, 32.0, 54.0)],
    )
    for x0, y0, x1, y1 in boxes:
        ImageDraw.Draw(image).ellipse((x0, y0, x1, y1), fill="white")
    row = {"image": image, "boxes": boxes, "concepts": ["storage tank"] * 3}
    words = {
        caption
        for seed in range(30)
        for caption in describe_row(row, find_facts(row), np.random.default_rng(seed))["captions"]
    }
    assert "three white storage tanks in a row in the upper left" in words


def test_a_concept_that_names_a_size_gets_none():
    boxes = [[x, 10.0, x + side, 10.0 + side] for x, side in ((10.0, 10), (40.0, 10), (80.0, 40))]
    row = {"image": Image.new("RGB", (200, 200)), "boxes": boxes, "concepts": ["small vehicle"] * 3}
    facts = find_facts(row)
    assert facts.sizes[2] == "large"
    assert not any("large" in word_region(facts, 2, np.random.default_rng(seed)) for seed in range(50))


def test_a_row_without_regions_keeps_its_words():
    row = {"image": Image.new("RGB", (20, 20)), "boxes": [], "concepts": [], "captions": ["a field"]}
    described = describe_row(row, find_facts(row), np.random.default_rng(0))
    assert described["captions"] == ["a field"] and described["phrases"] == []


# A model


QUICK = {"caption": Question("What?", 1, 500), "phrase": Question("What {}?", 1, 500)}


class Script:
    """A pipeline with given answers that records its questions."""

    def __init__(self, *answers: str):
        self.answers, self.asked = list(answers), []

    def __call__(self, text, **generation):
        self.asked += [
            (chat[0]["content"][1]["text"], generation["generate_kwargs"]["do_sample"]) for chat in text
        ]
        return [[{"generated_text": self.answers.pop(0)}] for _ in text]


@pytest.fixture
def row():
    row = draw_scene(2)
    row = describe_row(row, find_facts(row), np.random.default_rng(0))
    return {name: value[:1] if isinstance(value, list) else value for name, value in row.items()}


def test_a_usable_answer_takes_the_place_of_the_rule(row, tmp_path):
    ask = Script("a wide view", "a long white ship")
    (answered,) = ask_model([row], ask, tmp_path / "answers.jsonl", QUICK)
    assert answered["captions"] == ["a wide view", *row["captions"]]
    assert answered["phrases"] == ["a long white ship"] and answered["description"] == row["description"]
    assert ask.asked == [("What?", False), (f"What {row['concepts'][0]}?", False)]


def test_an_unusable_answer_is_asked_again_by_chance_and_every_raw_answer_is_kept(row, tmp_path):
    questions = {"caption": QUESTIONS["caption"]}
    ask = Script("!!", "- one\n- two", ' "A harbor with ships." ')
    (answered,) = ask_model([row], ask, tmp_path / "answers.jsonl", questions)
    assert answered["captions"][0] == "A harbor with ships."
    assert [drawn for _, drawn in ask.asked] == [False, True, True]
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [entry["raw"] for entry in kept] == ["!!", "- one\n- two", ' "A harbor with ships." ']
    assert [entry["answer"] for entry in kept] == [None, None, "A harbor with ships."]
    assert {entry["row"] for entry in kept} == {name_row(row)}


def test_without_a_usable_answer_the_rule_stands_and_the_report_says_so(row, tmp_path):
    report = SkipReport()
    questions = {"caption": QUESTIONS["caption"]}
    (answered,) = ask_model(
        [row], Script("?", "?"), tmp_path / "a.jsonl", questions, max_attempts=2, skip=report.skip
    )
    assert answered == row
    assert report.entries == [
        {"kind": "no usable answer", "message": "2.png: caption: the model's last answer was '?'."}
    ]


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(row, tmp_path):
    path, rows = tmp_path / "a.jsonl", [row | {"source": f"{i}.png"} for i in range(3)]
    whole = ask_model(
        rows, Script("aa", "bb", "cc", "dd", "ee", "ff"), tmp_path / "whole.jsonl", QUICK, batch_size=2
    )
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # the fourth was being written
    ask = Script("dd", "ee", "ff")
    assert ask_model(rows, ask, path, QUICK, batch_size=2) == whole
    assert len(ask.asked) == 3 and path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert ask_model(rows, Script(), path, QUICK) == whole


def test_a_vision_language_model_words_rows_through_the_pipeline(tiny_pipeline, tmp_path):
    scenes = [draw_scene(seed) for seed in (1, 2)]
    rows = [describe_row(row, find_facts(row), np.random.default_rng(0)) for row in scenes]
    questions = {name: Question(question.words, 2, 12) for name, question in QUESTIONS.items()}
    answered = ask_model(rows, tiny_pipeline, tmp_path / "a.jsonl", questions, batch_size=3, max_new_tokens=6)
    entries = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    asked = {(entry["row"], entry["granularity"], entry["region"]) for entry in entries}
    assert len(asked) == sum(2 + len(row["boxes"]) for row in rows)
    given = {entry["answer"] for entry in entries if entry["answer"]}
    assert given and {row["captions"][0] for row in answered} <= given
    again = ask_model(rows, Script(), tmp_path / "a.jsonl", questions)
    assert again == answered


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("a white ship", "a white ship"), ("  **a white ship** ", "a white ship"), ("", None), ("ship", None),
        ("a ship\nand more", None), ("a <image> ship", None), ("1 2 3", None), ("a " * 30, None),
    ],
)  # fmt: skip
def test_an_answer_is_some_plain_words_on_one_line(raw, answer):
    assert Question("What?", 2, 10).read_answer(raw) == answer
