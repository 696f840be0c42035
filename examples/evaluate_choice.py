"""Score a model on multiple-choice questions whose options are statements about the image.

    python examples/evaluate_choice.py --model outputs/train/final --questions CHOICE/image_caption.json \
        CHOICE/scene_classification.json

Each file is a list of questions in the format of CHOICE: `file_name` (relative to the file), `options` by
letter, and `answer`, a letter. The text of the question is not read, so use only files whose options are
complete statements. Takes seconds. Prints the accuracy per file beside chance, and writes `metrics.json`.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

from geoalign_hf import Embedder, StatementChoiceEvaluator
from geoalign_hf.evaluation.results import write_metrics


def main() -> None:
    """Load, score, print, write."""
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

    # 2. Scores.
    path = arguments.output_dir / "choice.npz" if arguments.save_embeds else None
    evaluator = StatementChoiceEvaluator(questions, arrays_path=path)
    scores = evaluator(Embedder(model, processor, arguments.image_size, arguments.batch_size))

    # 3. One table, one file.
    print(f"accuracy on {scores['num_questions']} questions, and chance")
    print(f"  {'all':32} {scores['accuracy']:.4f}   {scores['chance']:.4f}")
    for name, accuracy in scores["per_subject"].items():
        count, chance = scores["num_per_subject"][name], scores["chance_per_subject"][name]
        print(f"  {name:32} {accuracy:.4f}   {chance:.4f}   ({count})")
    write_metrics(arguments.output_dir / "metrics.json", {"choice": scores})


if __name__ == "__main__":
    main()
