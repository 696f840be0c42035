"""A picture of rows for the eye: each image with its numbered regions, and beside it what is said of it."""

import textwrap

from PIL import Image, ImageDraw, ImageFont

SIDE, TEXT_WIDTH, LINE = 420, 780, 14
MOST_REGIONS = 8  # that are drawn and listed; a hundred boxes can be counted, but not read
LINE_LENGTH = 120


def draw_contact_sheet(rows: list[dict]) -> Image.Image:
    """Draw rows one below the other.

    Args:
        rows: with PIL images.

    Returns:
        One RGB picture.

    Example:
        >>> row = {"image": Image.new("RGB", (64, 64)), "boxes": [[8, 8, 40, 40]], "phrases": ["a ship"]}
        >>> draw_contact_sheet([row]).size
        (1200, 434)
    """
    strips = [_draw_row(row) for row in rows]
    sheet = Image.new("RGB", (SIDE + TEXT_WIDTH, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _draw_row(row: dict) -> Image.Image:
    lines = _write_lines(row)
    image = row["image"].convert("RGB")
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    height = max(image.height, LINE * len(lines) + 8) + LINE
    strip = Image.new("RGB", (SIDE + TEXT_WIDTH, height), (24, 26, 30))
    strip.paste(image)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(12)
    quads = row.get("quads") or [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in row["boxes"]]
    for r, quad in enumerate(quads[:MOST_REGIONS]):
        corners = [(x * scale, y * scale) for x, y in quad]
        pen.polygon(corners, outline="yellow")
        pen.text(
            (corners[0][0] + 2, corners[0][1] + 1),
            str(r),
            "yellow",
            font,
            stroke_width=1,
            stroke_fill="black",
        )
    for i, line in enumerate(lines):
        pen.text((SIDE + 10, 4 + LINE * i), line, "white", font)
    return strip


def _write_lines(row: dict) -> list[str]:
    entries = [" ".join([row.get("source") or "", *map(str, row.get("window") or [])])]
    entries += [f"caption: {caption}" for caption in row.get("captions") or []]
    entries += [f"description: {row['description']}"] if row.get("description") else []
    negatives, kinds = row.get("hard_negatives") or [], row.get("negative_kinds") or []
    for r, phrase in enumerate(row["phrases"][:MOST_REGIONS]):
        entries.append(f"{r}: {phrase}")
        if negatives:
            named = zip(kinds[r] if kinds else [""] * len(negatives[r]), negatives[r], strict=True)
            entries += [f"      not ({kind}) {words}" for kind, words in named]
    if len(row["phrases"]) > MOST_REGIONS:
        entries.append(f"and {len(row['phrases']) - MOST_REGIONS} regions more")
    return [line for entry in entries for line in textwrap.wrap(entry, LINE_LENGTH, subsequent_indent="   ")]
