"""Classify an image and its boxes with the pipelines of transformers.

    python examples/zero_shot.py --model outputs/train/final --image harbor.png \
        --concepts ship "storage tank" bridge --boxes 40,12,310,96 500,220,560,300

Takes seconds. Prints the score of every concept for the image, and the best concept of each box; writes both
to `answers.json`. With `--trust_remote_code` the code that ships beside the weights runs, and geoalign_hf
need not be installed. Without boxes, any CLIP can be used.
"""

import argparse
import json
from pathlib import Path

from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


def parse_box(text: str) -> list[float]:
    """Read x0,y0,x1,y1."""
    box = [float(number) for number in text.split(",")]
    if len(box) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not a box; expected x0,y0,x1,y1 in pixels")
    return box


def main() -> None:
    """Classify the image and its boxes, and write the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Folder or Hub repository.")
    parser.add_argument("--image", required=True, help="File or URL of an image.")
    parser.add_argument("--concepts", nargs="+", required=True, help="Names to choose from.")
    parser.add_argument(
        "--boxes", nargs="+", type=parse_box, default=[], help="Boxes, x0,y0,x1,y1 in pixels."
    )
    parser.add_argument(
        "--template", default="a satellite image of a {}.", help="Sentence with {} for a concept."
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="Permission to run the code beside the weights."
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/zero_shot"), help="Folder of answers.json."
    )
    arguments = parser.parse_args()
    options = {"model": arguments.model, "trust_remote_code": arguments.trust_remote_code}
    if arguments.trust_remote_code:  # the code beside the weights also reads images
        load_images = get_class_from_dynamic_module("images_geoalign_clip.load_images", arguments.model)
    else:
        from geoalign_hf.model.images_geoalign_clip import load_images  # also registers the classes

    # 1. The whole image, with the stock pipeline.
    try:
        (image,) = load_images(arguments.image)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    classify = pipeline("zero-shot-image-classification", **options)
    scene = classify(image, candidate_labels=arguments.concepts, hypothesis_template=arguments.template)
    for answer in scene:
        print(f"image: {answer['label']} {answer['score']:.4f}")

    # 2. Its boxes, with the pipeline that ships with the model.
    regions = []
    if arguments.boxes:
        classify = pipeline("zero-shot-region-classification", **options)
        regions = classify(image, boxes=arguments.boxes, candidate_labels=arguments.concepts)
    for best, *_ in regions:
        print(f"box {best['box']}: {best['label']} {best['score']:.4f}")

    # 3. One file.
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    answers = {"image": scene, "regions": regions}
    (arguments.output_dir / "answers.json").write_text(json.dumps(answers, indent=2))


if __name__ == "__main__":
    main()
