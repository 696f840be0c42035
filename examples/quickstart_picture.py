"""Draw the picture of the quickstart: names of boxes, and the box that a phrase describes."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from toy_rows import CONCEPTS

from geoalign_hf import Embedder

GREEN, RED, GRAY = (90, 225, 110), (245, 90, 80), (170, 170, 170)


def draw_tile(row: dict, title: str, labels: list[str], colours: list[tuple]) -> Image.Image:
    """Enlarge a scene, and write a title above it and a label at each box."""
    zoom = min(490 / row["image"].width, 390 / row["image"].height)
    size = [round(length * zoom) for length in row["image"].size]
    tile, place = Image.new("RGB", (500, size[1] + 45), "white"), ((500 - size[0]) // 2, 35)
    tile.paste(row["image"].resize(size, Image.Resampling.LANCZOS), place)
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(16)
    pen.text((place[0], 8), title, fill="black", font=ImageFont.load_default(19))
    boxes = [
        [zoom * value + offset for value, offset in zip(box, place * 2, strict=True)] for box in row["boxes"]
    ]
    for box, colour in zip(boxes, colours, strict=True):
        pen.rectangle(box, outline=colour, width=3)
    for (x0, y0, _, y1), label, colour in zip(boxes, labels, colours, strict=True):  # over all boxes
        width = pen.textlength(label, font) + 6
        left, top = max(min(x0, place[0] + size[0] - width), place[0]), y0 - 20 if y0 > 56 else y1
        pen.rectangle((left, top, left + width, top + 20), fill=colour)
        pen.text((left + 3, top + 1), label, fill="black", font=font)
    return tile


def find_query(row: dict) -> int | None:
    """Find a region whose colour and concept no other region has, beside another region of its concept."""
    looks = [(phrase.split()[1], name) for phrase, name in zip(row["phrases"], row["concepts"], strict=True)]
    queries = [
        r for r, look in enumerate(looks) if looks.count(look) == 1 and row["concepts"].count(look[1]) > 1
    ]
    return queries[0] if queries else None


def draw_picture(folder: Path, classify, embedder: Embedder, scenes: list[dict]) -> dict[str, list[bool]]:
    """Draw what the model says of scenes, and return which of its answers are right."""
    named = [row for row in scenes if len(set(row["concepts"])) > 1 and len(row["boxes"]) > 2][:3]
    queried = [row for row in scenes if find_query(row) is not None and len(row["boxes"]) > 2][-3:]
    tiles, right = [], {"names": [], "phrases": []}
    for row in named:
        answers = classify(row["image"], boxes=row["boxes"], candidate_labels=list(CONCEPTS), top_k=1)
        is_right = [best["label"] == name for (best,), name in zip(answers, row["concepts"], strict=True)]
        labels = [f"{best['label']} {best['score']:.2f}" for (best,) in answers]
        tiles.append(draw_tile(row, "Names of boxes", labels, [GREEN if good else RED for good in is_right]))
        right["names"] += is_right
    for row in queried:
        r = find_query(row)
        cosines = embedder.embed_regions([row]) @ embedder.embed_text([row["phrases"][r]])[0]
        best, title = int(cosines.argmax()), f'Which box is "{row["phrases"][r]}"?'
        colours = [GRAY if i != best else GREEN if i == r else RED for i in range(len(cosines))]
        tiles.append(draw_tile(row, title, [f"{cosine:.2f}" for cosine in cosines], colours))
        right["phrases"].append(best == r)
    lines = [tiles[:3], tiles[3:]]
    heights = [max(tile.height for tile in line) for line in lines]
    picture = Image.new("RGB", (1500, sum(heights)), "white")
    for number, line in enumerate(lines):
        for i, tile in enumerate(line):
            picture.paste(tile, (500 * i, sum(heights[:number])))
    picture.save(folder / "quickstart.png")
    return right
