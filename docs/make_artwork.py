"""Draw the icon and the banner that the Comfy Registry shows: `python docs/make_artwork.py`.

Both show what the pack does with one bundled picture: its 32 codes in their order, each with the
sign that SEED Preview Codes draws for it, and on the banner the picture that the bundled model
paints from them. The registry wants a square icon of 400 pixels at most and a banner of 21:9.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import seed_core
from seed_core.codes.picture import colour_of, draw_sign
from seed_core.models.names import sample_pictures

FOLDER = Path(__file__).parent
PICTURE = "panda_on_orange"
PAPER, INK, SOFT = "#0b0d12", "#ffffff", "#aab2c5"
SCALE = 4  # drawn this much larger and scaled down, for smooth corners

# Pixels of the finished pictures.
ICON, ICON_RADIUS = 400, 32
FRAME = 9  # cells on a side: the rim of 9 x 9 cells is 32 cells
ICON_CELL, ICON_DOT = 43, 5
BANNER = (1260, 540)
COLUMNS, ROWS = 8, 4
BANNER_CELL, BANNER_DOT = 57, 7
TILE, GAP = 292, 44
TOP = 74  # of the two pictures


def read_and_paint() -> tuple[Image.Image, list[int], Image.Image]:
    """The bundled picture, its codes, and what the bundled decoder paints from them."""
    with Image.open(sample_pictures()[PICTURE]) as file:
        picture = file.convert("RGB")
    tokenizer, decoder = seed_core.load_tokenizer("seed-mini"), seed_core.load_decoder("seed-mini")
    codes = tokenizer.encode(tokenizer.preprocess([picture]))
    pixels = decoder.decode(tokenizer.embed(codes))[0].movedim(0, -1)
    painted = Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
    return picture, codes[0].tolist(), painted


def rim(side: int) -> list[tuple[int, int]]:
    """The cells around a square, clockwise from the top left."""
    last = side - 1
    top = [(x, 0) for x in range(last)]
    return [
        *top,
        *((last, x) for x, _ in top),
        *((last - x, last) for x, _ in top),
        *((0, last - x) for x, _ in top),
    ]


def paste_rounded(canvas: Image.Image, picture: Image.Image, box: tuple[int, ...]) -> None:
    """Put a picture at left, top, width of a canvas, with round corners."""
    left, top, width = (number * SCALE for number in box)
    mask = Image.new("L", (width, width))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, width - 1), 14 * SCALE, 255)
    canvas.paste(picture.resize((width, width), Image.Resampling.LANCZOS), (left, top), mask)


def draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], code: int, size: int, dot: int
) -> None:
    """A cell in the colour of its code, with the code's sign cut out."""
    left, top = (number * SCALE for number in corner)
    end = (size - 3) * SCALE
    box = (left + 3 * SCALE, top + 3 * SCALE, left + end, top + end)
    draw.rounded_rectangle(box, 6 * SCALE, colour_of(code))
    inset = (size * SCALE - 5 * dot * SCALE) // 2
    draw_sign(draw, left + inset, top + inset, code, dot * SCALE, PAPER)


def draw_icon(picture: Image.Image, codes: list[int]) -> Image.Image:
    """The picture in a frame of its 32 codes: still a picture in a frame at 16 pixels."""
    canvas = Image.new("RGBA", (ICON * SCALE, ICON * SCALE))
    draw = ImageDraw.Draw(canvas)
    end = ICON * SCALE - 1
    draw.rounded_rectangle((0, 0, end, end), ICON_RADIUS * SCALE, PAPER)
    margin = (ICON - FRAME * ICON_CELL) // 2
    for (x, y), code in zip(rim(FRAME), codes, strict=True):
        corner = margin + x * ICON_CELL, margin + y * ICON_CELL
        draw_cell(draw, corner, code, ICON_CELL, ICON_DOT)
    inside = margin + ICON_CELL + 4
    paste_rounded(canvas, picture, (inside, inside, ICON - 2 * inside))
    return canvas.resize((ICON, ICON), Image.Resampling.LANCZOS)


def draw_banner(picture: Image.Image, codes: list[int], painted: Image.Image) -> Image.Image:
    """The picture, its codes, the picture again, and the name of the pack."""
    width, height = BANNER
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    grid_width, grid_height = COLUMNS * BANNER_CELL, ROWS * BANNER_CELL
    left = (width - grid_width) // 2
    top = TOP + (TILE - grid_height) // 2
    for position, code in enumerate(codes):
        row, column = divmod(position, COLUMNS)
        corner = left + column * BANNER_CELL, top + row * BANNER_CELL
        draw_cell(draw, corner, code, BANNER_CELL, BANNER_DOT)
    margin = left - GAP - TILE
    paste_rounded(canvas, picture, (margin, TOP, TILE))
    paste_rounded(canvas, painted, (left + grid_width + GAP, TOP, TILE))
    middle = TOP + TILE // 2
    for x in (left - GAP // 2, left + grid_width + GAP // 2):
        points = [(x - 7, middle - 11), (x + 7, middle), (x - 7, middle + 11)]
        draw.polygon([(a * SCALE, b * SCALE) for a, b in points], SOFT)
    text_line = (TOP + TILE + 86) * SCALE
    title = ImageFont.load_default(60 * SCALE)
    draw.text((margin * SCALE, text_line), "SEED-LLaMA", INK, title, "ls")
    right = (width - margin) * SCALE
    line = ImageFont.load_default(30 * SCALE)
    draw.text((right, text_line), "pictures as 32 codes: read, drawn, edited", SOFT, line, "rs")
    return canvas.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    """Write icon.png and banner.jpg beside this file."""
    picture, codes, painted = read_and_paint()
    draw_icon(picture, codes).save(FOLDER / "icon.png", optimize=True)
    banner = draw_banner(picture, codes, painted)
    banner.save(FOLDER / "banner.jpg", quality=92, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
