"""A page to try a model: names for boxes, a heat map of a phrase, and a search in an archive.

    python app.py --model outputs/quickstart/final

As a Space it reads the model's name from `settings.json` beside it. It needs gradio, gradio_image_annotation,
transformers and torch; geoalign_hf need not be installed.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio_image_annotation import image_annotator
from PIL import Image, ImageOps
from transformers import pipeline

HERE = Path(__file__).parent
LABELS = "airplane, ship, storage tank, tennis court, road"
SIDES = (0.12, 0.25)  # sides of the windows of a heat map, as shares of the shorter side of the image
LARGEST_HEAT = 1600  # pixels: longer side of a heat map, whose arrays take memory
NUM_FOUND = 12
COLOURS = [(230, 70, 60), (60, 120, 240), (60, 190, 90), (240, 170, 40), (170, 90, 220), (40, 190, 200)]


def show_errors(function):
    """Show an error of the input as a message on the page, and leave the page as it is."""

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            gr.Warning(str(error), title="This cannot be done")
            return gr.skip()

    return wrapped


def split_labels(text: str) -> list[str]:
    """Split a text at commas and line ends, and drop what is given twice.

    Raises:
        ValueError: If there is no label.
    """
    labels = [label.strip() for label in (text or "").replace("\n", ",").split(",")]
    labels = list(dict.fromkeys(filter(None, labels)))
    if not labels:
        raise ValueError("There are no labels. Write some, with commas between them.")
    return labels


def open_picture(path: str | None) -> Image.Image:
    """Open an uploaded image, turned as it is shown.

    Raises:
        ValueError: If there is no file, or it is no image.
    """
    if not path:
        raise ValueError("There is no image. Upload one.")
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file cannot be read as an image ({error}). Upload another.") from error


class Page:
    """The functions behind the page.

    Args:
        model: Folder or Hub repository of the model.
        archive: Folder that `geoalign-hf embed` has written, or None.
        images: Folder of the images of the archive.
    """

    def __init__(self, model: str, archive: str | None = None, images: str | None = None):
        self.classify = pipeline("zero-shot-region-classification", model=model, trust_remote_code=True)
        self.model, self.processor = self.classify.model.eval(), self.classify.processor
        self.images = Path(images) if images else None
        if archive:
            self.rows, self.embeds = read_archive(Path(archive))

    def name_boxes(self, annotated: dict | None, words: str) -> tuple[dict, list[list]]:
        """Name the boxes that were drawn: the image with labels, and a table of scores."""
        annotated = annotated or {}
        open_picture(annotated.get("image"))
        if not annotated["boxes"]:
            raise ValueError("There are no boxes. Draw one around each object, with the mouse.")
        labels = split_labels(words)
        boxes = [[box[side] for side in ("xmin", "ymin", "xmax", "ymax")] for box in annotated["boxes"]]
        answers = self.classify(annotated["image"], boxes=boxes, candidate_labels=labels)
        named = [
            dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            | {"label": f"{n}: {answer[0]['label']} {answer[0]['score']:.2f}"}
            | {"color": COLOURS[labels.index(answer[0]["label"]) % len(COLOURS)]}
            for n, (box, answer) in enumerate(zip(boxes, answers, strict=True), start=1)
        ]
        table = [
            [n, found["label"], round(found["score"], 3)]
            for n, answer in enumerate(answers, start=1)
            for found in answer
        ]
        return annotated | {"boxes": named}, table

    def draw_heat(self, image: Any, phrase: str, others: Any) -> Image.Image:
        """Paint the probability of a phrase, against other labels, over an image."""
        picture = open_picture(image)
        (phrase, *more), others = split_labels(phrase), split_labels(others)
        if more:
            raise ValueError("Write one phrase, without commas.")
        others = [label for label in others if label != phrase]
        if max(picture.size) > LARGEST_HEAT and picture.mode in ("L", "RGB"):
            # The model sees each window at far fewer pixels than a large image has.
            picture.thumbnail((LARGEST_HEAT, LARGEST_HEAT))
            image = picture
        boxes = list_windows(*picture.size)
        answers = self.classify(image, boxes=boxes, candidate_labels=[phrase, *others])
        shrink = min(1.0, LARGEST_HEAT / max(picture.size))
        shown = picture.resize([math.ceil(side * shrink) for side in picture.size]).convert("L")
        heat, count = np.zeros((2, shown.height, shown.width), np.float32)
        for (x0, y0, x1, y1), answer in zip(boxes, answers, strict=True):
            score = next(found["score"] for found in answer if found["label"] == phrase)
            place = tuple(slice(int(a * shrink), math.ceil(b * shrink)) for a, b in ((y0, y1), (x0, x1)))
            heat[place] += score
            count[place] += 1
        heat = (heat / count)[..., None]
        gray = np.asarray(shown, np.float32)[..., None] * 0.6 + 60
        return Image.fromarray((gray * (1 - heat) + np.array([255, 60, 20]) * heat).astype(np.uint8))

    def search(self, query: str) -> list[tuple[Image.Image, str]]:
        """Find the places of the archive that fit a text best: crops and captions."""
        if not (query or "").strip():
            raise ValueError("There is no query. Write what you are looking for.")
        tokens = self.processor(text=[query], return_tensors="pt", padding=True).to(self.model.device)
        with torch.inference_mode():
            embed = self.model.embed_text(**tokens)[0].float().cpu().numpy()
        cosines = self.embeds @ embed
        return [self._show(self.rows[i], cosines[i]) for i in np.argsort(-cosines)[:NUM_FOUND]]

    def _show(self, row: dict, cosine: float) -> tuple[Image.Image, str]:
        image = ImageOps.exif_transpose(Image.open(self.images / row["path"])).convert("RGB")
        if row["box"]:
            image = image.crop(tuple(map(int, row["box"])))
        return image, f"{cosine:.2f} {row['path']}"


def list_windows(width: int, height: int) -> list[list[int]]:
    """List overlapping squares of two sizes that cover an image, as xyxy pixels."""
    windows = []
    for share in SIDES:
        side = max(8, round(share * min(width, height)))
        places = [np.linspace(0, full - side, max(2, 2 * full // side - 1)) for full in (width, height)]
        xs, ys = (place.round().astype(int).tolist() for place in places)
        windows += [[x, y, x + side, y + side] for y in ys for x in xs]
    return windows


def read_archive(folder: Path) -> tuple[list[dict], np.ndarray]:
    """Read the shards that `geoalign-hf embed` has written: rows, and their embeddings (N, D).

    Raises:
        ValueError: If the folder has no shards.
    """
    from pyarrow import parquet  # only an archive needs it

    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise ValueError(
            f"{folder} has no .parquet files. Give a folder that `geoalign-hf embed` has written."
        )
    rows = [row for shard in shards for row in parquet.read_table(shard).to_pylist()]
    return rows, np.array([row.pop("embed") for row in rows], np.float32)


def build_page(page: Page, sample: Path | None = None) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="GeoAlignCLIP") as blocks:
        gr.Markdown(
            "# GeoAlignCLIP\nA CLIP for satellite and aerial images, rebuilt from the paper's abstract. "
            "Scores are probabilities among your labels, so add labels for what else may be there."
        )
        with gr.Tab("Name boxes"):
            drawn = image_annotator(
                {"image": str(sample), "boxes": []} if sample else None,
                image_type="filepath",
                sources=["upload", "clipboard"],
                disable_edit_boxes=True,
                label="Upload an image and draw boxes",
            )
            # The components would cut values of 16-bit images off, and show no message for other files.
            drawn.preprocess_image = lambda image: image.path if image else None
            labels = gr.Textbox(LABELS, label="Labels, with commas between them", elem_id="labels")
            name = gr.Button("Name the boxes", variant="primary", elem_id="name")
            table = gr.Dataframe(headers=["box", "label", "score"], label="Scores", elem_id="scores")
            name.click(show_errors(page.name_boxes), [drawn, labels], [drawn, table])
        with gr.Tab("Find a phrase"):
            image: Any = gr.Image(
                str(sample) if sample else None, sources=["upload", "clipboard"], label="Image"
            )
            image.preprocess = drawn.preprocess_image
            phrase = gr.Textbox("a red storage tank", label="Phrase", elem_id="phrase")
            others = gr.Textbox("grass, water, soil, road", label="What else may be there", elem_id="others")
            find = gr.Button("Find it", variant="primary", elem_id="find")
            heat = gr.Image(label="Probability of the phrase: gray is 0, red is 1", elem_id="heat")
            find.click(show_errors(page.draw_heat), [image, phrase, others], heat)
        if page.images:
            with gr.Tab("Search an archive"):
                query = gr.Textbox("a ship", label="What you are looking for", elem_id="query")
                search = gr.Button("Search", variant="primary", elem_id="search")
                gallery = gr.Gallery(label="Best places first", columns=4, elem_id="found")
                search.click(show_errors(page.search), query, gallery)
    return blocks


def main() -> None:
    """Serve the page."""
    path = HERE / "settings.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default=settings.get("model", "outputs/quickstart/final"),
        help="folder or Hub repository of the model",
    )
    parser.add_argument("--sample", type=Path, help="image that is shown first")
    parser.add_argument("--archive", help="folder that `geoalign-hf embed` has written")
    parser.add_argument("--images", help="folder of the images of the archive")
    parser.add_argument("--port", type=int, help="port of the page")
    arguments = parser.parse_args()
    if bool(arguments.archive) != bool(arguments.images):
        parser.error("--archive and --images belong together. Give both.")
    sample = arguments.sample or HERE / "sample.png"
    page = Page(arguments.model, arguments.archive, arguments.images)
    build_page(page, sample if sample.exists() else None).launch(server_port=arguments.port)


if __name__ == "__main__":
    main()
