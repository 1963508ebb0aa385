"""Maps enlarged, laid over images, put on sheets."""

import io
from pathlib import Path

import numpy as np
import pytest
from images import photo
from PIL import Image

from mcbeit.viz import pictures
from mcbeit.viz.pictures import (
    CAPTION,
    CHOSEN,
    GAP,
    MARGIN,
    PAPER,
    TILE,
    TILES_PER_ROW,
    Tile,
    colour_tile,
    empty_tile,
    heat_scale,
    heat_tile,
    outline,
    photo_tile,
    sheet,
    write_png,
)
from mcbeit.viz.similarity import Patch

COLOURS = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]], np.float32)
EVERYTHING = np.ones((2, 2), dtype=bool)


def test_colour_tile__nearest_shows_the_patches() -> None:
    tile = colour_tile(COLOURS, EVERYTHING, "nearest")
    assert tile.size == (TILE, TILE)
    assert tile.getpixel((TILE // 2 - 1, 0)) == (255, 0, 0, 255)
    assert tile.getpixel((TILE // 2, 0)) == (0, 255, 0, 255)
    assert tile.getpixel((0, TILE - 1)) == (0, 0, 255, 255)


def test_colour_tile__bilinear_blends_them() -> None:
    red, green, _, _ = colour_tile(COLOURS, EVERYTHING, "bilinear").getpixel((TILE // 2, 0))
    assert 100 < red < 155
    assert 100 < green < 155


def test_colour_tile__what_is_not_shown_is_transparent() -> None:
    tile = colour_tile(COLOURS, np.array([[True, False], [True, True]]), "nearest")
    assert tile.getpixel((TILE - 1, 0))[3] == 0
    assert tile.getpixel((0, 0))[3] == 255


def test_colour_tile__what_is_not_shown_does_not_darken_the_rest() -> None:
    colours = np.array([[[1, 1, 1], [0, 0, 0]]], np.float32)
    tile = np.asarray(colour_tile(colours, np.array([[True, False]]), "bilinear"))
    assert tile[..., :3][tile[..., 3] > 16].min() > 230


def test_heat_tile__high_is_bright() -> None:
    pixels = np.full((20, 20, 3), 128, np.uint8)
    tile = heat_tile(pixels, np.array([[0.1, 0.9]], np.float32), low=0.1, high=0.9, upsample="nearest").convert("L")
    assert tile.getpixel((TILE - 1, 0)) > tile.getpixel((0, 0)) + 100


def test_heat_tile__a_flat_map_is_drawn() -> None:
    flat = np.full((2, 2), 0.5, np.float32)
    assert heat_tile(photo(), flat, low=0.5, high=0.5, upsample="bilinear").size == (TILE, TILE)


def test_outline__marks_one_patch_and_leaves_the_tile() -> None:
    tile = photo_tile(np.zeros((8, 8, 3), np.uint8))
    marked = outline(tile, Patch(1, 2), (4, 4))
    assert marked.getpixel((TILE // 2 - 2, TILE // 4 - 2)) == CHOSEN
    assert np.asarray(marked)[TILE // 4 : TILE // 2, TILE // 2 : 3 * TILE // 4].max() == 0  # the patch is left free
    assert tile.getextrema() == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("patch", [Patch(0, 0), Patch(3, 3)])
def test_outline__is_seen_at_the_borders(patch: Patch) -> None:
    marked = np.asarray(outline(photo_tile(np.zeros((8, 8, 3), np.uint8)), patch, (4, 4)))
    edge = marked[0] if patch.row == 0 else marked[-1]
    assert (edge == CHOSEN).all(axis=1).sum() > TILE // 5


def test_sheet__breaks_long_rows_and_leaves_room_for_captions() -> None:
    tile = photo_tile(photo())
    page = sheet([[Tile(tile)] * (TILES_PER_ROW + 1), [Tile(tile, "a caption")]])
    assert page.width == 2 * MARGIN + TILES_PER_ROW * (TILE + GAP) - GAP
    assert page.height == 2 * MARGIN + 3 * TILE + 2 * GAP + CAPTION


def test_sheet__captions_are_cut_to_the_tile() -> None:
    page = np.asarray(sheet([[Tile(empty_tile("x"), "long " * 100)]]))
    assert (page[:, MARGIN + TILE + 1 :] == PAPER).all()
    assert (page[MARGIN + TILE :] != PAPER).any()


def test_heat_scale__grows_brighter() -> None:
    lightness = np.asarray(heat_scale().convert("L"))[0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] > lightness[0] + 200


def test_write_png__whole_and_in_a_folder_that_is_made(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "b.png", photo_tile(photo()))
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.format == "PNG"
        assert image.size == (TILE, TILE)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_jpeg__is_one() -> None:
    assert Image.open(io.BytesIO(pictures.jpeg(photo_tile(photo())))).format == "JPEG"
