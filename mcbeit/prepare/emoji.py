"""Emoji in three styles on photographs, labelled by Unicode group; no emoji and no photograph is in both splits.

These are synthetic composites: say so wherever a figure measured on them is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mcbeit.prepare.emoji_art import emoji_split, fetch_art
from mcbeit.prepare.folder import Built, DataSet
from mcbeit.prepare.glyphs import Emoji, Style, scale, trim, turn
from mcbeit.prepare.photos import (
    SEED,
    Backgrounds,
    credit_table,
    fetch_photographs,
    named_generator,
    open_backgrounds,
    random_crop,
)
from mcbeit.prepare.progress import track

IMAGE_SIZE = 128
NUM_VARIANTS = {"train": 6, "val": 2}  # images of each emoji in each style
PHOTOGRAPH_SHORT_SIDE = 720
LARGEST_CROP = 0.8  # of the photograph's short side
SMALLEST_GLYPH, LARGEST_GLYPH = 0.45, 0.9  # longer side, as a share of the image
LARGEST_ANGLE = 25.0  # degrees, either way
JPEG_QUALITY = 90
ATTRIBUTION = """# Emoji on photographs (synthetic composites)

{styles}
Changes: the pictures were scaled, turned and laid upon crops of the photographs below.
A file name is CODEPOINTS_STYLE_VARIANT_PHOTOGRAPH.jpg.

"""


@dataclass(frozen=True)
class Picture:
    """One emoji in one style."""

    emoji: Emoji
    style: str

    @property
    def split(self) -> str:
        """The split that the emoji belongs to."""
        return emoji_split(self.emoji)


def build(tree: Path, workspace: Path) -> Built:
    """Write both splits under `tree`."""
    art = fetch_art(workspace)
    photographs, photograph_sources = fetch_photographs(workspace)
    backgrounds = open_backgrounds(photographs, short_side=PHOTOGRAPH_SHORT_SIDE)
    write_images(art.emoji, art.styles, backgrounds, tree)
    text = ATTRIBUTION.format(styles=art.credits) + credit_table(photographs)
    return Built([*art.sources, *photograph_sources], text)


def write_images(emoji: Sequence[Emoji], styles: Mapping[str, Style], backgrounds: Backgrounds, tree: Path) -> None:
    """Write `SPLIT/GROUP/CODEPOINTS_STYLE_VARIANT_PHOTOGRAPH.jpg` for each emoji that a style has."""
    for split in backgrounds:
        for group in {one.group for one in emoji}:
            (tree / split / group).mkdir(parents=True)
    pictures = [Picture(one, style) for one in emoji for style in styles]
    for picture in track(pictures, label="composing emoji", total=len(pictures)):
        glyph = styles[picture.style].picture(picture.emoji.codepoints)
        if glyph is not None:
            folder = tree / picture.split / picture.emoji.group
            _write_variants(glyph, picture, backgrounds[picture.split], folder)


def _write_variants(glyph: Image.Image, picture: Picture, photographs: Mapping[str, Image.Image], folder: Path) -> None:
    for variant in range(NUM_VARIANTS[picture.split]):
        generator = named_generator(picture.emoji.codepoints, picture.style, str(variant))
        name = str(generator.choice(sorted(photographs)))
        background = random_crop(photographs[name], generator, size=IMAGE_SIZE, largest=LARGEST_CROP)
        image = compose(glyph, background, generator)
        file_name = f"{picture.emoji.codepoints}_{picture.style}_{variant}_{name}.jpg"
        image.save(folder / file_name, quality=JPEG_QUALITY)


def compose(glyph: Image.Image, background: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Lay the RGBA glyph on the background at a random size, angle and place; all of it stays visible."""
    side = min(background.size)
    longer_side = generator.uniform(SMALLEST_GLYPH, LARGEST_GLYPH) * side
    turned = turn(scale(trim(glyph), longer_side), generator.uniform(-LARGEST_ANGLE, LARGEST_ANGLE))
    turned.thumbnail((side, side))
    left = int(generator.integers(background.width - turned.width + 1))
    top = int(generator.integers(background.height - turned.height + 1))
    image = background.copy()
    image.paste(turned, (left, top), turned)
    return image


EMOJI = DataSet(name="emoji", builder_version=1, seed=SEED, build=build)
