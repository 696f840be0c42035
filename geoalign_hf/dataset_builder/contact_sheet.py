"""Contact sheets: pages of rows that show each image with its numbered regions and its text."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, SIDE, MARGIN = 1200, 480, 16  # of a page, of an image and between the parts, in pixels
FONT_SIZE, LINE = 15, 20
ROWS_PER_PAGE = 4
MOST_REGIONS = 6  # drawn and listed per row; more cannot be read
BACKGROUND, TEXT, FAINT, MARK = (24, 26, 30), (255, 255, 255), (150, 155, 165), (255, 255, 0)


def draw_pages(rows: list[dict], folder: Path) -> list[Path]:
    """Draw rows on pages: `contact_sheet.png`, `contact_sheet_2.png` and so on.

    Args:
        rows: Rows with PIL images.
        folder: Folder of the pages.

    Returns:
        The paths of the pages.
    """
    paths = []
    for start in range(0, len(rows), ROWS_PER_PAGE):
        number = f"_{len(paths) + 1}" if paths else ""
        paths.append(folder / f"contact_sheet{number}.png")
        draw_contact_sheet(rows[start : start + ROWS_PER_PAGE]).save(paths[-1])
    return paths


def draw_contact_sheet(rows: list[dict]) -> Image.Image:
    """Draw rows one below the other.

    Args:
        rows: Rows with PIL images.

    Returns:
        One RGB image.

    Example:
        >>> row = {"image": Image.new("RGB", (64, 64)), "boxes": [[8, 8, 40, 40]], "phrases": ["a ship"]}
        >>> draw_contact_sheet([row]).size
        (1200, 496)
    """
    strips = [_draw_row(row) for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _draw_row(row: dict) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    lines = [
        (line, colour)
        for text, colour in _list_text(row)
        for line in _wrap(text, font, WIDTH - SIDE - 2 * MARGIN)
    ]
    image = row["image"].convert("RGB")
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    strip = Image.new("RGB", (WIDTH, max(image.height, LINE * len(lines)) + MARGIN), BACKGROUND)
    strip.paste(image)
    pen = ImageDraw.Draw(strip)
    quads = row.get("quads") or [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in row["boxes"]]
    for r, quad in enumerate(quads[:MOST_REGIONS]):
        corners = [(x * scale, y * scale) for x, y in quad]
        pen.polygon(corners, outline=MARK)
        place = (corners[0][0] + 3, corners[0][1] + 1)
        pen.text(place, str(r + 1), MARK, font, stroke_width=2, stroke_fill=BACKGROUND)
    for i, (line, colour) in enumerate(lines):
        pen.text((SIDE + MARGIN, LINE * i + 2), line, colour, font)
    return strip


def _list_text(row: dict) -> list[tuple[str, tuple[int, int, int]]]:
    """List the paragraphs beside an image, each with its colour."""
    source = " ".join([row.get("source") or "", *map(str, row.get("window") or [])]).strip()
    found = [(source, FAINT)] if source else []
    found += [(f"Caption: {caption}", TEXT) for caption in row.get("captions") or []]
    if row.get("description"):
        found.append((f"Description: {row['description']}", TEXT))
    negatives, kinds = row.get("hard_negatives") or [], row.get("negative_kinds") or []
    for r, phrase in enumerate(row["phrases"][:MOST_REGIONS]):
        found.append((f"{r + 1}  {phrase}", MARK))
        for i, words in enumerate(negatives[r] if negatives else []):
            found.append((f"     wrong {kinds[r][i] if kinds else ''}: {words}", FAINT))
    if len(row["phrases"]) > MOST_REGIONS:
        found.append((f"{len(row['phrases']) - MOST_REGIONS} more regions", FAINT))
    return found


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels. A single word that is longer keeps its line."""
    indent = text[: len(text) - len(text.lstrip())]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else f"{indent}{word}"
        if lines[-1] and font.getlength(longer) > width:
            longer = f"{indent}   {word}"
            lines.append(longer)
        else:
            lines[-1] = longer
    return lines
