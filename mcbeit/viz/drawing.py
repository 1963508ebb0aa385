"""The three drawings: each writes a sheet, a picture per image and a page into one folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mcbeit.atomic import write_bytes
from mcbeit.encoder import Encoder
from mcbeit.errors import ImageError, PictureError
from mcbeit.viz.images import Shown, show
from mcbeit.viz.neighbours import Neighbour, Neighbours
from mcbeit.viz.page import Group, Page, Picture, render
from mcbeit.viz.pca import Foreground, pca_colours
from mcbeit.viz.pictures import (
    Tile,
    Upsample,
    colour_tile,
    empty_tile,
    heat_tile,
    outline,
    photo_tile,
    sheet,
    write_png,
)
from mcbeit.viz.similarity import SimilarityMap, patch_at, similarity_map

PAIRS_PER_ROW = 6  # of a sheet of PCA colours: images in one row, their colours in the next
MINUS = {ord("-"): "\N{MINUS SIGN}"}


def draw_pca(
    encoder: Encoder,
    images: Sequence[str],
    out: Path,
    *,
    foreground: Foreground = "none",
    upsample: Upsample = "bilinear",
) -> Path:
    """Write `pca.html`, `pca.png` and `pca/*.png`; returns the page. Raises PictureError or ImageError."""
    shown = [show(path, encoder.spec) for path in images]
    found = pca_colours(encoder.patch_features(images), foreground)
    photos = [photo_tile(one.pixels) for one in shown]
    tiles = [colour_tile(*pair, upsample) for pair in zip(found.colours, found.is_shown, strict=True)]
    for name, tile in zip(_file_names(shown), tiles, strict=True):
        write_png(out / "pca" / name, tile)
    rows: list[list[Tile]] = []
    for start in range(0, len(shown), PAIRS_PER_ROW):
        part = slice(start, start + PAIRS_PER_ROW)
        rows += [[Tile(photo) for photo in photos[part]], [Tile(tile) for tile in tiles[part]]]
    write_png(out / "pca.png", sheet(rows))
    shares = ", ".join(_percent(share) for share in found.explained)
    explanation = [
        "One PCA over the patch features of all images: red, green and blue are the first three components, which hold "
        f"{shares} of the variance. Patches of the same colour have similar features, in one image or in several; "
        "which colour it is means nothing. Each component runs from its 1st to its 99th percentile."
    ]
    if foreground != "none":
        explanation.append(
            f"Patches on the other side of a first PCA's first component (foreground={foreground}) are left out: "
            f"{_percent(1 - float(found.is_shown.mean()))} of all."
        )
    groups = [
        Group(
            [Picture(photo, f"image {one.name}", one.name), Picture(tile, f"PCA colours of the patches of {one.name}")]
        )
        for one, photo, tile in zip(shown, photos, tiles, strict=True)
    ]
    page = Page("mcbeit viz pca", "Patch features as colours", _count(shown), groups, encoder.spec, explanation)
    return _write_page(out / "pca.html", page)


def draw_similarity(
    encoder: Encoder,
    images: Sequence[str],
    out: Path,
    *,
    places: Sequence[tuple[float, float]] = ((0.5, 0.5),),
    upsample: Upsample = "bilinear",
) -> Path:
    """Write `similarity.html`, `similarity.png` and `similarity/*.png`: places of the first image against all patches.

    Returns the page. Raises PictureError or ImageError.
    """
    shown = [show(path, encoder.spec) for path in images]
    features = encoder.patch_features(images)
    grid = (features.shape[1], features.shape[2])
    groups = []
    for number, place in enumerate(places, start=1):
        found = similarity_map(features, patch_at(place, grid))
        where = f"patch at {place[0]:g}, {place[1]:g}"
        query = outline(photo_tile(shown[0].pixels), found.patch, grid)
        pictures = [Picture(query, f"image {shown[0].name}, {where} outlined", where, shown[0].name)]
        for index, name in enumerate(_file_names(shown)):
            pictures.append(_similarity_picture(shown[index], found, index, upsample, where))
            write_png(out / "similarity" / f"{number:02d}" / name, pictures[-1].image)
        groups.append(Group(pictures, scale=(found.low, found.high)))
    rows = [[Tile(picture.image, picture.caption) for picture in group.pictures] for group in groups]
    write_png(out / "similarity.png", sheet(rows))
    explanation = [
        "The cosine of the features of one patch, outlined in the first picture, with those of every patch, of its own "
        "image and of the others. One colour scale per row; the patch itself, whose cosine is 1, does not set it. In "
        "the other images the patch that is most alike is outlined."
    ]
    title = "What is like this patch?"
    page = Page("mcbeit viz similarity", title, _count(shown), groups, encoder.spec, explanation, is_wide=True)
    return _write_page(out / "similarity.html", page)


def _similarity_picture(one: Shown, found: SimilarityMap, index: int, upsample: Upsample, where: str) -> Picture:
    """The map of one image; outlined is the patch itself, or in other images the one that is most like it."""
    values, is_own = found.values[index], index == 0
    tile = heat_tile(one.pixels, values, low=found.low, high=found.high, upsample=upsample)
    rows, columns = values.shape
    tile = outline(tile, found.patch if is_own else found.best[index], (rows, columns))
    note = f"most alike{' elsewhere' * is_own}: {values[found.best[index]]:.2f}".translate(MINUS)
    return Picture(tile, f"similarity map of {one.name} for the {where}", one.name, note)


def draw_neighbours(encoder: Encoder, images: Sequence[str], out: Path, neighbours: Neighbours) -> Path:
    """Write `neighbours.html`, `neighbours.png` and `neighbours/*.png`: a row of the nearest images for each.

    Returns the page. Raises PictureError, ImageError, or VectorIndexError.
    """
    shown = [show(path, encoder.spec) for path in images]
    found = neighbours.of(encoder, images)
    if not any(found):
        raise PictureError("one image has no neighbours; name several, or an index")
    known = {one.path: photo_tile(one.pixels) for one in shown}
    rows, groups = [], []
    for one, name, nearest in zip(shown, _file_names(shown), found, strict=True):
        query = Picture(known[one.path], f"query {one.name}", "query", one.name)
        pictures = [query, *(_neighbour_picture(near, encoder, known) for near in nearest)]
        row = [Tile(picture.image, picture.caption) for picture in pictures]
        write_png(out / "neighbours" / name, sheet([row]))
        rows.append(row)
        groups.append(Group(pictures))
    write_png(out / "neighbours.png", sheet(rows))
    explanation = [
        f"The images nearest to each query, the nearest first, among {neighbours.described}. The number is the cosine "
        "of the two embeddings; an image is not shown as its own neighbour."
    ]
    page = Page(
        "mcbeit viz neighbours", "Nearest neighbours", _count(shown), groups, encoder.spec, explanation, is_wide=True
    )
    return _write_page(out / "neighbours.html", page)


def _neighbour_picture(near: Neighbour, encoder: Encoder, known: dict[str, Image.Image]) -> Picture:
    """The picture of a neighbour; one that is not a file here, such as a member of a tar, is named alone."""
    name = os.fsencode(Path(near.path).name).decode(errors="replace")
    if near.path not in known:
        try:
            known[near.path] = photo_tile(show(near.path, encoder.spec).pixels)
        except ImageError:
            known[near.path] = empty_tile("no picture here")
    caption = f"{f'{near.score:.3f}'.translate(MINUS)}  {near.label or ''}".rstrip()
    return Picture(known[near.path], f"neighbour {name}, cosine {near.score:.3f}", caption, name)


def _file_names(shown: Sequence[Shown]) -> list[str]:
    """A name for the picture of each image: numbered, so that they differ, and safe."""
    return [
        f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', Path(one.name).stem)[:60]}.png"
        for number, one in enumerate(shown, start=1)
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _count(shown: Sequence[Shown]) -> str:
    names = ", ".join(one.name for one in shown[:4])
    return f"{len(shown)} image{'s' * (len(shown) > 1)}: {names}{', …' * (len(shown) > 4)}"


def _write_page(path: Path, page: Page) -> Path:
    write_bytes(path, render(page).encode())
    return path
