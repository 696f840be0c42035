"""Boxes to language: phrases, captions and a description, by rule or by a vision-language model.

What enters is a row with its image; what leaves is the row with its words. By rule, everything said is true
as far as the boxes tell, and the wording varies with the seed. By a model, every answer is kept as it came.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .facts import Facts
from .report import Report
from .words import NUMBERS, RELATIONS, SIZES, add_article, count_noun, join_words, pluralize, rank_concepts

VIEWS = ("an aerial image", "an overhead image", "a view from above")
MOST_CONCEPTS = 5  # in one enumeration; the commonest are named
MOST_SENTENCES = 7  # in a description
MOST_ASKED = 50  # regions are looked at for one of them


def describe_row(row: dict, facts: Facts, rng: np.random.Generator) -> dict:
    """Word a row by rule.

    Args:
        row: with regions.
        facts: of the row.
        rng: chooses among what is true, and its wording.

    Returns:
        The row with `phrases`; with `captions` and `description` if it has regions. Captions that the row has
        are kept and come first.
    """
    words = {"phrases": [word_region(facts, r, rng) for r in range(len(facts))]}
    if len(facts):
        words["captions"] = list(dict.fromkeys([*(row.get("captions") or []), *word_captions(facts, rng)]))
        words["description"] = row.get("description") or word_description(facts, rng)
    return row | words


def word_region(facts: Facts, r: int, rng: np.random.Generator) -> str:
    """Word one region: what it is, and some of what is known of it.

    It reads `a [size] [colour] concept [place | relation]`, or
    `one of three [colour] concepts [in a row] [place]`: forms that `negatives` relies on.
    """
    group = facts.list_group(r)
    if is_countable(facts, group) and rng.random() < 0.5:
        return f"one of {word_group(facts, group, rng)}"
    relation, place = find_relation(facts, r, rng), facts.find_place([r])
    place = word_place(place, rng) if place else None
    more = relation if relation and (not place or rng.random() < 0.5) else place
    return " ".join(filter(None, (word_noun(facts, [r], rng), more)))


def word_group(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Word all regions of a group: "three white storage tanks in a row at the upper left"."""
    row = "in a row" if facts.is_in_row(group) else None
    place = find_own_place(facts, group)
    place = word_place(place, rng) if place else None
    return " ".join(filter(None, (word_noun(facts, group, rng), row, place)))


def word_noun(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Word regions of one concept by number, size and colour: "two white ships", "a large ship"."""
    concept = facts.concepts[group[0]]
    size = facts.sizes[group[0]] if len(group) == 1 else None
    colours = {facts.colours[r] for r in group}
    colour = colours.pop() if len(colours) == 1 else None
    # "a large small vehicle" says nothing, and a concept may have a colour in its name.
    said = [word for word in (size, colour) if word and not {*SIZES, word} & set(concept.split())]
    return count_noun(" ".join([*(said if rng.random() < 0.9 else []), concept]), len(group))


def is_countable(facts: Facts, group: list[int]) -> bool:
    """Say whether "one of three" can only mean this group: they are all there are, or stand in a row."""
    concept = facts.concepts[group[0]]
    if not 2 <= len(group) < len(NUMBERS) or concept in facts.uncounted:
        return False
    return len(group) == len(facts.kinds[concept]) or facts.is_in_row(group)


def find_own_place(facts: Facts, group: list[int]) -> str | None:
    """Name the place of a group, if no other region of its concept might be said to lie there."""
    place = facts.find_place(group)
    others = set(facts.kinds[facts.concepts[group[0]]]) - set(group)
    return None if place and any(facts.may_lie_at(s, place) for s in others) else place


def find_relation(facts: Facts, r: int, rng: np.random.Generator) -> str | None:
    """Word how a region lies to one of another concept: "next to a harbor"."""
    found = [
        f"{relation} {add_article(facts.concepts[s])}"
        for s in facts.list_nearest(r)
        for relation in RELATIONS
        if facts.holds(r, relation, s)
    ]
    return str(rng.choice(sorted(set(found)))) if found else None


def word_place(place: str, rng: np.random.Generator) -> str:
    """Say a place.

    Example:
        >>> word_place("upper left", np.random.default_rng(0))
        'at the upper left'
    """
    return f"{'in' if place == 'center' else 'at'} the {place}{rng.choice([' of the image', ''])}"


def count_kinds(facts: Facts, rng: np.random.Generator) -> str:
    """Say how many of each concept there are; where boxes do not tell the number, no number is said."""
    counted = []
    for concept, number in rank_concepts(facts.concepts)[:MOST_CONCEPTS]:
        if concept in facts.uncounted:
            counted.append(pluralize(concept))
        elif number >= 10 and rng.random() < 0.5:
            counted.append(f"many {pluralize(concept)}")
        else:
            counted.append(count_noun(concept, number))
    return join_words(counted)


def word_captions(facts: Facts, rng: np.random.Generator) -> list[str]:
    """Write short captions: one that counts, one of a group that can be placed, one that names the kinds."""
    captions = [f"{rng.choice(VIEWS)} with {count_kinds(facts, rng)}"]
    groups = [group for group in list_groups(facts) if is_placed(facts, group)]
    if groups:
        captions.append(word_group(facts, groups[int(rng.integers(min(3, len(groups))))], rng))
    kinds = rank_concepts(facts.concepts)[:MOST_CONCEPTS]
    nouns = [
        add_article(concept) if number == 1 and concept not in facts.uncounted else pluralize(concept)
        for concept, number in kinds
    ]
    return [*captions, f"{join_words(nouns)} seen from above"]


def list_groups(facts: Facts) -> list[list[int]]:
    """List the groups of regions, the largest first, as far as their numbers are known."""
    groups = [np.flatnonzero(facts.groups == number).tolist() for number in np.unique(facts.groups)]
    countable = [group for group in groups if facts.concepts[group[0]] not in facts.uncounted]
    return sorted(countable, key=len, reverse=True)


def is_placed(facts: Facts, group: list[int]) -> bool:
    """Say whether more can be said of a group than its number."""
    return facts.is_in_row(group) or find_own_place(facts, group) is not None


def word_description(facts: Facts, rng: np.random.Generator) -> str:
    """Write a long description: numbers, then where groups lie, then single regions and neighbours."""
    sentences = [f"{_capitalize(str(rng.choice(VIEWS)))} that shows {count_kinds(facts, rng)}."]
    placed = [group for group in list_groups(facts) if is_placed(facts, group)]
    for group in placed[: MOST_SENTENCES // 2]:
        words, verb = word_group(facts, group, rng), "is" if len(group) == 1 else "are"
        sentences.append(
            f"There {verb} {words}." if rng.random() < 0.5 else f"{_capitalize(words)} can be seen."
        )
    said, said_places = {r for group in placed for r in group}, set()
    for r in rng.permutation([r for r in range(len(facts)) if r not in said])[:MOST_ASKED].tolist():
        place = facts.find_place([r])
        if place and (facts.concepts[r], place) not in said_places and len(sentences) < MOST_SENTENCES - 2:
            said_places.add((facts.concepts[r], place))
            sentences.append(f"{_capitalize(word_noun(facts, [r], rng))} is {word_place(place, rng)}.")
    told = ""
    for r in rng.permutation(len(facts))[:MOST_ASKED].tolist():
        relation = find_relation(facts, r, rng) if len(sentences) < MOST_SENTENCES else None
        if relation and facts.concepts[r] not in told:  # who is next to me has been said to be so
            told += relation
            sentences.append(f"{_capitalize(add_article(facts.concepts[r]))} is {relation}.")
    return " ".join(dict.fromkeys(sentences))


def _capitalize(words: str) -> str:
    return words[0].upper() + words[1:]


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what shape a usable answer has.

    Args:
        words: of the question; `{}` stands for the region's concept.
        fewest: words of an answer, at least.
        most: words of an answer, at most.
    """

    words: str
    fewest: int
    most: int

    def read_answer(self, raw: str) -> str | None:
        """Take the answer out of what a model wrote, or None if it is no usable one.

        Example:
            >>> Question("What is it?", 2, 5).read_answer(' "A white ship." ')
            'A white ship.'
            >>> Question("What is it?", 2, 5).read_answer("ship") is None
            True
        """
        answer = raw.strip().strip("\"'`*").strip()
        is_plain = "\n" not in answer and re.search(r"[^\W\d_]{2}", answer) and "<" not in answer
        return answer if is_plain and self.fewest <= len(answer.split()) <= self.most else None


QUESTIONS = {
    "caption": Question("Describe this aerial image in one short sentence.", 3, 30),
    "description": Question(
        "Describe this aerial image in one paragraph: what is there, how many, of what colour, and where. "
        "Say only what you can see.",
        15,
        250,
    ),
    "phrase": Question(
        "This part of an aerial image shows one {}. Write a short noun phrase for it that tells what is "
        "special about it, without a full stop.",
        2,
        20,
    ),
}
CONTEXT_SHARE = 0.25  # of a region's longer side is shown on each side of it


def ask_model(
    rows: list[dict],
    ask: Callable,
    path: str | Path,
    questions: dict[str, Question] = QUESTIONS,
    batch_size: int = 8,
    max_attempts: int = 3,
    seed: int = 0,
    report: Report | None = None,
    **generation,
) -> list[dict]:
    """Let a vision-language model word rows: a caption, a description, and a phrase for each region.

    Every answer is appended to a file of JSON lines as soon as it is there. What the file has already is not
    asked again, so that a run that was killed goes on. The first attempt is greedy, later ones are drawn.

    Args:
        rows: with PIL images and `source`; `source` and `window` together name a row.
        ask: a transformers pipeline "image-text-to-text".
        path: of the file: `row`, `granularity`, `region`, `attempt`, `raw` (as it came) and `answer`.
        questions: by granularity: "caption", "description" and "phrase", or some of them.
        batch_size: questions that are asked at once.
        max_attempts: for a usable answer; if there is none, the words that the row has stay.
        seed: of the attempts that are drawn.
        report: takes up the questions without a usable answer.
        **generation: settings of `generate`, such as `max_new_tokens`, which is 300 by default.

    Returns:
        The rows with the model's words; a caption comes before those that the row has.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = _read_answers(path)
    requests = [request for row in rows for request in _list_requests(row, questions)]
    with path.open("a", encoding="utf-8") as file:
        for attempt in range(max_attempts):
            open_requests = [request for request in requests if _is_open(answers.get(request.key), attempt)]
            for start in range(0, len(open_requests), batch_size):
                batch = open_requests[start : start + batch_size]
                torch.manual_seed(seed + attempt)
                chats = [request.make_chat() for request in batch]
                settings = {"max_new_tokens": 300, "do_sample": attempt > 0} | generation
                outputs = ask(
                    text=chats, batch_size=batch_size, return_full_text=False, generate_kwargs=settings
                )
                for request, output in zip(batch, outputs, strict=True):
                    raw = output[0]["generated_text"]
                    answer = request.question.read_answer(raw)
                    name, granularity, region = request.key
                    entry = {"row": name, "granularity": granularity, "region": region}
                    entry |= {"attempt": attempt, "raw": raw, "answer": answer}
                    answers[request.key] = entry
                    file.write(json.dumps(entry) + "\n")
                file.flush()
    for request in requests:
        if answers[request.key]["answer"] is None and report:
            name, granularity, region = request.key
            place = (
                f"{name}: {granularity}" if region is None else f"{name}: {granularity} of region {region}"
            )
            raw = answers[request.key]["raw"]
            report.leave_out("no usable answer", f"{place}: the model's last answer was {raw!r}.")
    return [_take_answers(row, answers) for row in rows]


@dataclass(frozen=True)
class _Request:
    key: tuple[str, str, int | None]
    question: Question
    image: Image.Image
    concept: str = ""

    def make_chat(self) -> list[dict]:
        words = self.question.words.format(self.concept)
        content = [{"type": "image", "image": self.image}, {"type": "text", "text": words}]
        return [{"role": "user", "content": content}]


def name_row(row: dict) -> str:
    """Name a row by the picture and the window it was made of.

    Example:
        >>> name_row({"source": "P0001.png", "window": [0, 0, 512, 512]})
        'P0001.png 0 0 512 512'
    """
    return " ".join([str(row.get("source")), *map(str, row.get("window") or [])])


def _list_requests(row: dict, questions: dict[str, Question]) -> Iterator[_Request]:
    name, image = name_row(row), row["image"].convert("RGB")
    for granularity in [name for name in ("caption", "description") if name in questions]:
        yield _Request((name, granularity, None), questions[granularity], image)
    if "phrase" in questions:
        for r, (x0, y0, x1, y1) in enumerate(row["boxes"]):
            margin = CONTEXT_SHARE * max(x1 - x0, y1 - y0)
            edges = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
            low, high = [max(0, int(edge)) for edge in edges[:2]], [int(edge) + 1 for edge in edges[2:]]
            crop = image.crop((*low, min(high[0], image.width), min(high[1], image.height)))
            yield _Request((name, "phrase", r), questions["phrase"], crop, row["concepts"][r])


def _is_open(entry: dict | None, attempt: int) -> bool:
    return entry is None or (entry["answer"] is None and entry["attempt"] < attempt)


def _read_answers(path: Path) -> dict[tuple, dict]:
    """Read the answers of a run that may have been killed: a last line without its end is taken off."""
    if not path.exists():
        return {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    if path.stat().st_size > len(whole) + 1:
        path.write_bytes(whole + b"\n" if whole else b"")
    entries = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    return {(entry["row"], entry["granularity"], entry["region"]): entry for entry in entries}


def _take_answers(row: dict, answers: dict[tuple, dict]) -> dict:
    def take(granularity: str, region: int | None = None) -> str | None:
        return answers.get((name_row(row), granularity, region), {}).get("answer")

    phrases = [take("phrase", r) or phrase for r, phrase in enumerate(row["phrases"])]
    captions = [take("caption"), *(row.get("captions") or [])]
    return row | {
        "phrases": phrases,
        "captions": [caption for caption in captions if caption],
        "description": take("description") or row.get("description"),
    }
