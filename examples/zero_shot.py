"""Name an image, and what is in each of its boxes, by the pipelines of transformers.

    python examples/zero_shot.py --model outputs/train/final --image harbor.png \
        --concepts ship "storage tank" bridge --boxes 40,12,310,96 500,220,560,300

Takes seconds. Prints the score of every concept for the image and the best concept of each box; writes both
to `answers.json`. With `--trust_remote_code` the code that ships beside the weights runs, and geoalign_hf
need not be installed; the image alone can be asked of any CLIP.
"""

import argparse
import json
from pathlib import Path

from transformers import pipeline


def parse_box(text: str) -> list[float]:
    """Read x0,y0,x1,y1."""
    box = [float(number) for number in text.split(",")]
    if len(box) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no box; write x0,y0,x1,y1 in pixels")
    return box


def main() -> None:
    """Load, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--image", required=True, help="file or URL")
    parser.add_argument("--concepts", nargs="+", required=True, help="names to choose from")
    parser.add_argument("--boxes", nargs="+", type=parse_box, default=[], help="x0,y0,x1,y1 in pixels")
    parser.add_argument(
        "--template", default="a satellite image of a {}.", help="words a concept of the image"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code beside the weights")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/zero_shot"))
    arguments = parser.parse_args()
    options = {"model": arguments.model, "trust_remote_code": arguments.trust_remote_code}
    if not arguments.trust_remote_code:
        import geoalign_hf  # noqa: F401  (registers the classes)

    # 1. The whole image, by the stock pipeline.
    classify = pipeline("zero-shot-image-classification", **options)
    scene = classify(
        arguments.image, candidate_labels=arguments.concepts, hypothesis_template=arguments.template
    )
    for answer in scene:
        print(f"image: {answer['label']} {answer['score']:.4f}")

    # 2. Its boxes, by the pipeline that comes with the model.
    regions = []
    if arguments.boxes:
        classify = pipeline("zero-shot-region-classification", **options)
        regions = classify(arguments.image, boxes=arguments.boxes, candidate_concepts=arguments.concepts)
    for best, *_ in regions:
        print(f"box {best['box']}: {best['label']} {best['score']:.4f}")

    # 3. One file.
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    answers = {"image": scene, "regions": regions}
    (arguments.output_dir / "answers.json").write_text(json.dumps(answers, indent=2))


if __name__ == "__main__":
    main()
