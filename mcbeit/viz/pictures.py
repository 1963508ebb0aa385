"""From numbers to pictures: maps of patches enlarged, laid over images, and sheets of many tiles."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from mcbeit.atomic import write_bytes
from mcbeit.viz.similarity import Patch

Upsample = Literal["nearest", "bilinear"]

TILE = 256  # pixels, a side of a picture
GAP, MARGIN, CAPTION = 12, 24, 26  # pixels, of a sheet
TILES_PER_ROW = 8  # of a sheet; longer rows are broken
PAPER, INK, MUTED, EMPTY = (252, 251, 248), (35, 36, 31), (104, 105, 98), (235, 233, 227)
HEAT = "inferno"  # monotonous in lightness, so it also works without colour
VEIL = 0.68  # of the heat over the grey image
CHOSEN = (61, 220, 255)  # an outline that is neither in the heat nor often in photographs


class Tile(NamedTuple):
    """A picture on a sheet, with a line below it."""

    picture: Image.Image
    caption: str = ""


def photo_tile(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    """An image at the size of a tile."""
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)


def colour_tile(
    colours: Float32[np.ndarray, "row column 3"], is_shown: Bool[np.ndarray, "row column"], upsample: Upsample
) -> Image.Image:
    """A map of colours in [0, 1], enlarged; what is not shown is transparent."""
    small = Image.fromarray(np.rint(255 * colours).astype(np.uint8))
    small.putalpha(Image.fromarray(is_shown.astype(np.uint8) * 255))
    return _enlarge(small, upsample)  # with its alpha, so that the colour of what is not shown does not bleed


def heat_tile(
    pixels: UInt8[np.ndarray, "height width 3"],
    values: Float32[np.ndarray, "row column"],
    *,
    low: float,
    high: float,
    upsample: Upsample,
) -> Image.Image:
    """A map of numbers as colours from `low` to `high`, over the grey image."""
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    fine = np.asarray(_enlarge(Image.fromarray(scaled.astype(np.float32)), upsample))
    colours = colormaps[HEAT](fine, bytes=True)[..., :3]
    return Image.blend(photo_tile(pixels).convert("L").convert("RGB"), Image.fromarray(colours.copy()), VEIL)


def outline(tile: Image.Image, patch: Patch, grid: tuple[int, int], *, width: int = 3) -> Image.Image:
    """The tile with a frame around one patch; dark lines on both sides keep it visible on any ground."""
    drawn = tile.copy()
    height, breadth = tile.height / grid[0], tile.width / grid[1]
    left, top = patch.column * breadth, patch.row * height
    draw = ImageDraw.Draw(drawn)
    for colour, outside, thickness in (((0, 0, 0), width + 2, width + 2), (CHOSEN, width + 1, width)):
        box = (left - outside, top - outside, left + breadth - 1 + outside, top + height - 1 + outside)
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], tile.width - 1), min(box[3], tile.height - 1))
        draw.rectangle(inside, outline=colour, width=thickness)
    return drawn


def empty_tile(text: str) -> Image.Image:
    """What stands for a picture that is not there."""
    tile = Image.new("RGB", (TILE, TILE), EMPTY)
    ImageDraw.Draw(tile).text((TILE / 2, TILE / 2), text, fill=MUTED, font=_font(18), anchor="mm")
    return tile


def heat_scale() -> Image.Image:
    """The colours of `heat_tile`, from low on the left to high on the right."""
    return Image.fromarray(colormaps[HEAT](np.linspace(0.0, 1.0, 256)[None], bytes=True)[..., :3].copy())


def sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """All tiles on one sheet; long rows are broken, and rows with captions are that much higher."""
    rows = [row[start : start + TILES_PER_ROW] for row in rows for start in range(0, len(row), TILES_PER_ROW)]
    heights = [TILE + CAPTION * any(tile.caption for tile in row) for row in rows]
    width = 2 * MARGIN + max(len(row) for row in rows) * (TILE + GAP) - GAP
    page = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1)), PAPER)
    draw, top = ImageDraw.Draw(page), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = MARGIN + column * (TILE + GAP)
            if tile.picture.mode == "RGBA":
                draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
            page.paste(tile.picture, (left, top), tile.picture if tile.picture.mode == "RGBA" else None)
            draw.text((left, top + TILE + 5), _fitting(tile.caption), fill=INK, font=_font(15))
        top += height + GAP
    return page


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    return _encoded(picture, "png", optimize=True)


def jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    return _encoded(picture, "jpeg", quality=88)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG file, whole or not at all; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png(picture))


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _enlarge(small: Image.Image, upsample: Upsample) -> Image.Image:
    return small.resize((TILE, TILE), Image.Resampling[upsample.upper()])


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib and has the letters of many languages."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _fitting(text: str) -> str:
    """The caption, cut to the width of a tile."""
    font = _font(15)
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(f"{text}…") > TILE:
        text = text[:-1]
    return f"{text}…"
