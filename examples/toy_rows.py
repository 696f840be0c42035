"""Draw small labelled overhead scenes, so that every example and every test runs offline.

Each scene is a row of the package's schema, with an oriented box (quad) and hard negatives per region. All
texts are true of the drawing. Ships lie mostly on water, airplanes mostly on aprons.

    python examples/toy_rows.py --num_rows 12 --output outputs/toy_rows/contact_sheet.png

draws scenes side by side with boxes (yellow) and quads (cyan).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[int, ...]
Part = tuple[np.ndarray, RGB]  # one polygon, (points, 2), and its fill
SUPERSAMPLING = 3
DARK, WHITE = (45, 50, 58), (240, 240, 236)
COLOURS = {"white": (236, 236, 232), "black": (44, 46, 52), "red": (190, 44, 40), "blue": (38, 84, 180)}
COLOURS |= {"green": (36, 134, 62), "yellow": (228, 190, 44)}
LENGTHS = (0.7, 1.8)  # least and greatest factor on the length of a concept
COUNTS = ("no", "one", "two", "three", "four", "five", "six")
PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the center", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


class Ground(NamedTuple):
    """A kind of ground. No region on it has the colour that would not be visible there."""

    rgb: RGB
    roughness: float
    hides: str | None  # a colour
    odds: tuple[float, ...]  # of each concept, in the order of CONCEPTS


GROUNDS = {
    "grass": Ground((98, 116, 64), 13, "green", (0.14, 0, 0.2, 0.36, 0.3)),
    "water": Ground((44, 76, 96), 7, "blue", (0, 0.86, 0.14, 0, 0)),
    "an apron": Ground((164, 160, 152), 8, None, (0.42, 0, 0.24, 0.08, 0.26)),
    "bare soil": Ground((150, 118, 84), 12, None, (0.12, 0, 0.4, 0.18, 0.3)),
}


class Region(NamedTuple):
    """One drawn object, in pixels of the image."""

    colour: str
    concept: str
    parts: list[Part]
    quad: np.ndarray  # (4, 2), the tightest rectangle along the thing's own axis
    shadow: float  # its length
    noun: str  # the concept, or another word for it


def find_box(parts: list[Part]) -> np.ndarray:
    """Find the tightest xyxy around polygons."""
    points = np.concatenate([points for points, _ in parts])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def shade(rgb: Sequence[float], factor: float) -> RGB:
    """Darken (factor < 1) or lighten (factor > 1) a colour."""
    return tuple(int(min(max(channel * factor, 0), 255)) for channel in rgb)


def draw_gray(rng: np.random.Generator, low: float = 50, high: float = 190) -> RGB:
    """Draw a gray with a hint of some colour."""
    return tuple((rng.uniform(low, high) + rng.integers(-12, 13, size=3)).astype(int))


def draw_tone(rgb: RGB, rng: np.random.Generator) -> RGB:
    """Draw a tone near a colour; white and dark details get any tone between dark gray and white."""
    if rgb in (WHITE, DARK):
        return draw_gray(rng, *((150, 245) if rgb == WHITE else (25, 110)))
    return shade(rgb, rng.uniform(0.6, 1.3))


def mirror(points: list[tuple[float, float]]) -> np.ndarray:
    """Close a half outline with its reflection about the x axis."""
    return np.array(points + [(x, -y) for x, y in reversed(points)])


def outline_bar(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Outline an upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def outline_disk(radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Outline a circle about (x, y)."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


# The five below draw with length 1 along x, the front at x = 0.5, the lowest part first.


def draw_airplane(rgb: RGB, rng: np.random.Generator) -> list[Part]:
    """Draw swept wings with engines, a tail, and a fuselage with a dark cockpit."""
    half_span, sweep = rng.uniform(0.4, 0.5), rng.uniform(0.16, 0.28)
    wings = [(0.17, 0), (0.13 - sweep, half_span), (0.05 - sweep, half_span), (-0.07, 0.05)]
    fuselage = [(0.5, 0), (0.48, 0.03), (0.42, 0.055), (-0.2, 0.055), (-0.5, 0.015)]
    return [
        *((outline_bar(0.02, y - 0.03, 0.15, y + 0.03), DARK) for y in (-0.19, 0.19)),
        (mirror(wings), shade(rgb, 0.88)),
        (mirror([(-0.31, 0), (-0.44, 0.19), (-0.5, 0.19), (-0.47, 0)]), shade(rgb, 0.88)),
        (mirror(fuselage), shade(rgb, 1.06)),
        (mirror([(0.45, 0.03), (0.39, 0.04)]), DARK),
    ]


def draw_ship(rgb: RGB, rng: np.random.Generator) -> list[Part]:
    """Draw a hull with a pointed bow and a dark side, hatches on the deck, and a cabin at the stern."""
    beam, cabin_front = rng.uniform(0.11, 0.16), rng.uniform(-0.24, -0.16)
    hull = mirror([(0.5, 0), (0.42, 0.5), (0.28, 0.9), (0.15, 1), (-0.44, 1), (-0.5, 0.75)]) * (1, beam)
    hatches = np.linspace(cabin_front + 0.06, 0.32, int(rng.integers(2, 5)), endpoint=False)
    return [
        (hull, shade(rgb, 0.5)),
        (hull * (0.95, 0.8), rgb),
        *((outline_bar(x, -beam / 2, x + 0.3 / len(hatches), beam / 2), shade(rgb, 0.72)) for x in hatches),
        (outline_bar(-0.42, -beam * 0.75, cabin_front, beam * 0.75), WHITE),
        (outline_bar(cabin_front - 0.05, -beam * 0.75, cabin_front, beam * 0.75), DARK),
        (outline_disk(0.035, -0.36), shade(rgb, 0.7)),
    ]


def draw_storage_tank(rgb: RGB, rng: np.random.Generator) -> list[Part]:
    """Draw a round roof with a dark wall, a rim lit from the upper left, a ring and a hatch."""
    hatch = (0.06, *rng.uniform(-0.15, 0.15, 2), 0.55)
    wall, rim = (0.5, 0, 0, 0.5), (0.455, -0.025, -0.025, 1.35)
    disks = [wall, rim, (0.43, 0, 0, 1), (0.3, 0, 0, 0.84), (0.27, 0, 0, 1), hatch]
    return [(outline_disk(radius, x, y), shade(rgb, factor)) for radius, x, y, factor in disks]


def draw_tennis_court(rgb: RGB, rng: np.random.Generator) -> list[Part]:
    """Draw a darker surround, the playing field, its white lines, and the net across the middle."""
    width, line = rng.uniform(0.25, 0.29), 0.011
    across = [(-0.38, 0.19), (-0.2, 0.145), (0.2, 0.145), (0.38, 0.19)]  # x, and how far the line reaches
    along = [(-0.19, 0.38), (-0.145, 0.38), (0, 0.2), (0.145, 0.38), (0.19, 0.38)]  # y, and the same
    return [
        (outline_bar(-0.5, -width, 0.5, width), shade(rgb, 0.68)),
        (outline_bar(-0.38, -0.19, 0.38, 0.19), rgb),
        *((outline_bar(x - line, -reach - line, x + line, reach + line), WHITE) for x, reach in across),
        *((outline_bar(-reach, y - line, reach, y + line), WHITE) for y, reach in along),
        (outline_bar(-0.016, -0.22, 0.016, 0.22), DARK),
    ]


def draw_road(rgb: RGB, rng: np.random.Generator) -> list[Part]:
    """Draw a long strip with dark edges and a dashed line along its center."""
    width, num_dashes = rng.uniform(0.11, 0.15), int(rng.integers(5, 8))
    starts = (np.arange(num_dashes) + 0.2) / num_dashes - 0.5
    paint = DARK if sum(rgb) > 450 else WHITE
    return [
        (outline_bar(-0.5, -width, 0.5, width), shade(rgb, 0.7)),
        (outline_bar(-0.5, -width * 0.84, 0.5, width * 0.84), rgb),
        *((outline_bar(x, -width * 0.13, x + 0.6 / num_dashes, width * 0.13), paint) for x in starts),
    ]


# concept: how to draw it, its middle length in pixels where the image's shorter side is 192, height / length
KINDS = {
    "airplane": (draw_airplane, 48, 0.1),
    "ship": (draw_ship, 54, 0.05),
    "storage tank": (draw_storage_tank, 30, 0.25),
    "tennis court": (draw_tennis_court, 56, 0),
    "road": (draw_road, 92, 0),
}
CONCEPTS = tuple(KINDS)
# Other words, which occur in phrases only. No row has one of them as its concept.
OTHER_WORDS = dict(zip(CONCEPTS, ("plane", "vessel", "silo", "sports ground", "street"), strict=True))


def list_colours(concept: str, ground: Ground) -> list[str]:
    """List the colours that show on this ground; white lines need a court that is not pale."""
    unfit = {ground.hides, "white", "yellow"} if concept == "tennis court" else {ground.hides}
    return [colour for colour in COLOURS if colour not in unfit]


def place_region(concept: str, colour: str, width: int, height: int, rng: np.random.Generator) -> Region:
    """Draw a concept at a random size, angle and place; its quad may stick out of the image."""
    draw, length, tallness = KINDS[concept]
    length *= np.exp(rng.uniform(*np.log(LENGTHS))) * min(width, height) / 192
    angle = 0.0 if concept == "storage tank" else rng.uniform(0, 2 * np.pi)
    turn = length * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    center = rng.uniform((0, 0), (width, height))
    parts = draw(tuple(COLOURS[colour] + rng.integers(-10, 11) + rng.integers(-4, 5, size=3)), rng)
    quad = outline_bar(*find_box(parts)) @ turn + center
    # Tones differ from object to object, or a histogram of colours could name the concepts.
    tones = {fill: draw_tone(fill, rng) for _, fill in parts}
    parts = [(points @ turn + center, tones[fill]) for points, fill in parts]
    noun = OTHER_WORDS[concept] if rng.random() < 0.4 else concept
    return Region(colour, concept, parts, quad, length * tallness, noun)


def place_regions(ground: Ground, width: int, height: int, rng: np.random.Generator) -> list[Region]:
    """Place 1 to 6 regions of up to three concepts wholly inside the image, with no quad over another."""
    num_wanted, regions, taken = rng.integers(1, 7), [], Image.new("1", (width, height))
    concepts = rng.choice(CONCEPTS, size=rng.integers(1, 4), p=ground.odds)
    usual = {concept: rng.choice(list_colours(concept, ground)) for concept in CONCEPTS}
    for _ in range(100):
        concept = str(rng.choice(concepts))
        colour = str(rng.choice([usual[concept], rng.choice(list_colours(concept, ground))]))
        region = place_region(concept, colour, width, height, rng)
        if (region.quad < 1).any() or (region.quad > (width - 1, height - 1)).any():
            continue
        wanted = Image.new("1", (width, height))
        ImageDraw.Draw(wanted).polygon(region.quad.ravel().tolist(), fill=1)
        if not ImageChops.logical_and(wanted, taken).getbbox():
            taken = ImageChops.logical_or(wanted, taken)
            regions.append(region)
        if len(regions) == num_wanted:
            break
    return regions


def fill_polygon(pen: ImageDraw.ImageDraw, points: np.ndarray, fill: RGB | int) -> None:
    """Fill a polygon, given in pixels of the image, on a canvas SUPERSAMPLING times as large."""
    pen.polygon((points * SUPERSAMPLING).ravel().tolist(), fill=fill)


def draw_bush(pen: ImageDraw.ImageDraw, center: np.ndarray, unit: float, rng: np.random.Generator) -> None:
    """Draw a bush, which no text mentions."""
    green = shade((52, 78, 42), rng.uniform(0.7, 1.1))
    for _ in range(4):
        fill_polygon(pen, outline_disk(unit * rng.uniform(1.5, 4), *rng.normal(center, 2.5 * unit)), green)


def draw_ground(ground: Ground, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Draw a coarse and a fine texture, some patches, and on land some bushes."""
    coarse = Image.fromarray(rng.normal(size=(5, 6)).astype(np.float32))
    texture = np.asarray(coarse.resize((40, 30), Image.Resampling.BICUBIC)) + 0.6 * rng.normal(size=(30, 40))
    tint = np.array(ground.rgb) * rng.uniform(0.55, 1.25) + rng.normal(size=3, scale=10)
    canvas = Image.fromarray((tint + ground.roughness * texture[..., None]).clip(0, 255).astype(np.uint8))
    canvas = canvas.resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.BICUBIC)
    pen, unit = ImageDraw.Draw(canvas), min(width, height) / 192
    for _ in range(rng.integers(3, 9)):
        radii = unit * rng.uniform(10, 45) * rng.uniform(0.95, 1.02, size=(40, 1))
        patch = outline_disk(1) * radii + rng.uniform((0, 0), (width, height))
        fill_polygon(pen, patch, shade(tint + rng.normal(size=3, scale=8), rng.uniform(0.6, 1.5)))
    for _ in range(0 if ground is GROUNDS["water"] else rng.integers(0, 9)):
        draw_bush(pen, rng.uniform((0, 0), (width, height)), unit, rng)
    return canvas


def draw_scene(canvas: Image.Image, regions: list[Region], rng: np.random.Generator) -> Image.Image:
    """Draw shadows and regions on a ground, then blur, and vary contrast, brightness and noise."""
    shadows, sun = Image.new("L", canvas.size), rng.uniform(0.35, 1.2)
    for region in regions:
        shift = region.shadow * np.array([np.cos(sun), np.sin(sun)])  # to the lower right
        for points, _ in region.parts if region.shadow else ():
            fill_polygon(ImageDraw.Draw(shadows), points + shift, 115)
    canvas.paste((12, 14, 22), mask=shadows)
    for region in regions:
        for points, fill in region.parts:
            fill_polygon(ImageDraw.Draw(canvas), points, fill)
    image = canvas.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6)))
    pixels = (np.asarray(image, np.float32) - 128) * rng.uniform(0.75, 1.12) + 128 + rng.uniform(-20, 20)
    noise = rng.uniform(1, 5) * rng.standard_normal((*pixels.shape[:2], 1), np.float32)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def compose_hard_negatives(region: Region, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Compose one to three (kind, phrase) with another colour or concept than the region's."""
    nouns = [noun for pair in OTHER_WORDS.items() if region.concept not in pair for noun in pair]
    colours = rng.permutation([colour for colour in COLOURS if colour != region.colour])
    pairs = [("colour", f"a {colour} {region.noun}") for colour in colours[:2]]
    pairs.append(("concept", f"a {region.colour} {rng.choice(nouns)}"))
    return [pairs[i] for i in rng.permutation(3)[: rng.integers(1, 4)]]


def count_nouns(noun: str, number: int) -> str:
    """Write "an airplane", "a ship" or "two ships"."""
    article = "an" if noun.startswith("airplane") else "a"
    return f"{article} {noun}" if number == 1 else f"{COUNTS[number]} {noun}s"


def join_words(words: list[str]) -> str:
    """Write "x", "x and y" or "x, y and z"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def compose_words(ground_name: str, regions: list[Region], width: int, height: int) -> tuple[list[str], str]:
    """Compose two captions that count, and a description that also names every colour and place."""
    plain, coloured, detailed, placed = [], [], [], []
    for concept in dict.fromkeys(region.concept for region in regions):
        group = [region for region in regions if region.concept == concept]
        colours = Counter(region.colour for region in group)
        shared = f"{group[0].colour} {concept}" if len(colours) == 1 else concept
        mixture = ", ".join(f"{COUNTS[number]} {colour}" for colour, number in colours.items())
        plain.append(count_nouns(concept, len(group)))
        coloured.append(count_nouns(shared, len(group)))
        detailed.append(coloured[-1] if len(colours) == 1 else f"{coloured[-1]} ({mixture})")
        cells = [(region.quad.mean(axis=0) * 3 // (width, height)).astype(int) for region in group]
        where = join_words(list(dict.fromkeys(PLACES[row][column] for column, row in cells)))
        placed.append(f"The {concept} lies {where}." if len(group) == 1 else f"The {concept}s lie {where}.")
    captions = [
        f"{join_words(coloured)} on {ground_name}",
        f"{ground_name} with {join_words(plain)} from above",
    ]
    return captions, f"An overhead view of {ground_name} with {join_words(detailed)}. {' '.join(placed)}"


def draw_row(index: int, seed: int, size: tuple[int, int]) -> dict:
    """Draw a row. It depends on these three arguments alone."""
    rng = np.random.default_rng([seed, index])
    stretch, ground_name = rng.uniform(0.75, 1.25), str(rng.choice(list(GROUNDS)))
    width, height = round(size[0] * stretch), round(size[1] / stretch)
    canvas = draw_ground(GROUNDS[ground_name], width, height, rng)
    regions = place_regions(GROUNDS[ground_name], width, height, rng)
    captions, description = compose_words(ground_name, regions, width, height)
    negatives = [compose_hard_negatives(region, rng) for region in regions]
    return {
        "image": draw_scene(canvas, regions, rng),
        "captions": rng.permutation(captions)[: rng.integers(1, 3)].tolist(),
        "description": description,
        "boxes": [find_box(region.parts).round(2).tolist() for region in regions],
        "quads": [region.quad.round(2).tolist() for region in regions],
        "phrases": [f"a {region.colour} {region.noun}" for region in regions],
        "concepts": [region.concept for region in regions],
        "hard_negatives": [[phrase for _, phrase in pairs] for pairs in negatives],
        "negative_kinds": [[kind for kind, _ in pairs] for pairs in negatives],
    }


def draw_rows(num_rows: int, seed: int = 0, size: tuple[int, int] = (256, 192)) -> list[dict]:
    """Draw labelled overhead scenes; row i depends on i, `seed` and `size` alone.

    Args:
        num_rows: how many; more rows leave the first ones as they are.
        seed: 0 or more.
        size: (width, height) in pixels. One is multiplied and the other divided by 0.75 to 1.25.

    Returns:
        Rows with `image`, `captions`, `description` and, for each of 1 to 6 regions, an entry in `boxes`
        (xyxy pixels, tight), `quads` (four [x, y] pixels going round, tight along the object's own axis),
        `phrases`, `concepts`, `hard_negatives` and `negative_kinds`.

    Example:
        >>> draw_rows(4)[3] == draw_rows(10)[3]
        True
    """
    return [draw_row(i, seed, size) for i in range(num_rows)]


def draw_contact_sheet(rows: list[dict], num_columns: int = 4) -> Image.Image:
    """Draw rows side by side with boxes, quads, phrases and the first caption."""
    tile = (340, 285)
    sheet = Image.new("RGB", (tile[0] * num_columns, tile[1] * -(-len(rows) // num_columns)), DARK)
    for i, row in enumerate(rows):
        image, left, top = row["image"].copy(), i % num_columns * tile[0], i // num_columns * tile[1]
        pen = ImageDraw.Draw(image)
        for box, quad, phrase in zip(row["boxes"], row["quads"], row["phrases"], strict=True):
            pen.polygon(np.ravel(quad).tolist(), outline="cyan")
            pen.rectangle(box, outline="yellow")
            pen.text((box[0], box[1] - 11), phrase, fill="yellow")
        sheet.paste(image, (left, top + 14))
        ImageDraw.Draw(sheet).text((left, top), row["captions"][0], fill="white")
    return sheet


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(description="Draw toy rows and write them as one picture.")
    parser.add_argument("--output", type=Path, default=Path("outputs/toy_rows/contact_sheet.png"))
    parser.add_argument("--num_rows", type=int, default=12, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(draw_rows(arguments.num_rows, arguments.seed)).save(arguments.output)
    print(f"Wrote {arguments.num_rows} scenes to {arguments.output}")


if __name__ == "__main__":
    main()
