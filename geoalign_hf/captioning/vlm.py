"""Text for images and regions written by a vision-language model."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Question:
    """A question for a model, and the form of a usable answer.

    Args:
        words: The question. `{}` stands for the region's concept.
        fewest: Minimum number of words of an answer.
        most: Maximum number of words of an answer.
    """

    words: str
    fewest: int
    most: int

    def read_answer(self, raw: str) -> str | None:
        """Return the answer in what a model wrote, or None if it is not usable.

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
CONTEXT_SHARE = 0.25  # margin around a region that is shown with it, in parts of its longer side


def ask_model(
    rows: list[dict],
    ask: Callable,
    path: str | Path,
    questions: dict[str, Question] = QUESTIONS,
    batch_size: int = 8,
    max_attempts: int = 3,
    seed: int = 0,
    skip: Callable[[str, str], None] | None = None,
    **generation,
) -> list[dict]:
    """Ask a vision-language model for the text of rows: a caption, a description, and a phrase per region.

    Every answer is appended to a file of JSON lines at once. Questions that the file answers are not asked
    again, so that an interrupted run continues. The first attempt is greedy, later ones are sampled.

    Args:
        rows: Rows with PIL images and `source`. `source` and `window` together name a row.
        ask: A transformers pipeline "image-text-to-text".
        path: File of the answers, with the fields `row`, `granularity`, `region`, `attempt`, `raw` and
            `answer`.
        questions: Questions by granularity: "caption", "description" and "phrase", or some of them.
        batch_size: Number of questions that are asked at once.
        max_attempts: Maximum number of attempts. Without a usable answer, the text of the row is kept.
        seed: Seed of the sampled attempts.
        skip: Function that is called with a kind and a message for each question without a usable answer.
        **generation: Settings of `generate`, such as `max_new_tokens`, which is 300 by default.

    Returns:
        The rows with the model's text. Its caption comes before those of the row.
    """
    import torch  # takes seconds, and rules do not need it

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
        if answers[request.key]["answer"] is None and skip:
            name, granularity, region = request.key
            place = (
                f"{name}: {granularity}" if region is None else f"{name}: {granularity} of region {region}"
            )
            raw = answers[request.key]["raw"]
            skip("no usable answer", f"{place}: the model's last answer was {raw!r}.")
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
    """Name a row by the image and the window that it was made of.

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
    """Read the answers of a run that may have been interrupted. An incomplete last line is removed."""
    if not path.exists():
        return {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    if path.stat().st_size > len(whole) + 1:
        path.write_bytes(whole + b"\n" if whole else b"")
    entries = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
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
