"""Answer multiple-choice questions whose options are statements about the image, and score the answers.

    python examples/evaluate_choice.py --model outputs/train/final --questions CHOICE/image_caption.json \
        CHOICE/scene_classification.json

A file is a list of questions in the form of CHOICE: `file_name` (relative to the file), `options` by letter,
and `answer`, a letter. The question itself is not read, so only files whose options say the whole mean
something. Takes seconds. Prints the share of right answers per file beside chance; writes `metrics.json`.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.evaluation.choice import evaluate_statement_choice
from geoalign_hf.evaluation.results import write_metrics


def main() -> None:
    """Load, answer, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument(
        "--questions", required=True, nargs="+", type=Path, help="JSON files, one per subject"
    )
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluate_choice"))
    parser.add_argument("--save_embeds", action="store_true", help="also write the embeddings, as npz")
    arguments = parser.parse_args()

    # 1. Model and questions.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    questions = [
        {
            "image": path.parent / entry["file_name"],
            "options": list(entry["options"].values()),
            "answer": list(entry["options"]).index(entry["answer"]),
            "subject": path.stem,
        }
        for path in arguments.questions
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]

    # 2. Answers.
    scores = evaluate_statement_choice(
        model,
        processor,
        questions,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        embeds_path=arguments.output_dir / "choice.npz" if arguments.save_embeds else None,
    )

    # 3. One table, one file.
    print(f"right answers to {scores['num_questions']} questions, and what guessing would give")
    print(f"  {'all':32} {scores['accuracy']:.4f}   {scores['chance']:.4f}")
    for name, share in scores["per_subject"].items():
        count, chance = scores["num_per_subject"][name], scores["chance_per_subject"][name]
        print(f"  {name:32} {share:.4f}   {chance:.4f}   ({count})")
    write_metrics(arguments.output_dir / "metrics.json", {"choice": scores})


if __name__ == "__main__":
    main()
