"""Scenes of several emoji on a photograph, with the exact outline of each: what several data sets are written from.

A scene is a function of the seed, its split and its number, so all of them show the same ones. No emoji and no
photograph is in both splits. These are synthetic composites: say so wherever a figure measured on them is shown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageChops, ImageFilter, ImageOps

from mcbeit.prepare.emoji_art import emoji_split, fetch_art
from mcbeit.prepare.folder import SPLITS, Source
from mcbeit.prepare.glyphs import Emoji, Style, scale, trim, turn
from mcbeit.prepare.photos import (
    SHORT_SIDE,
    Backgrounds,
    Photograph,
    credit_table,
    fetch_photographs,
    named_generator,
    open_backgrounds,
    random_crop,
)
from mcbeit.prepare.progress import track

CLASSES = {  # Unicode subgroups of things, of 11 to 66 emoji, and the group of each
    "animal-bird": "animals-nature",
    "animal-bug": "animals-nature",
    "animal-mammal": "animals-nature",
    "animal-marine": "animals-nature",
    "clothing": "objects",
    "drink": "food-drink",
    "food-fruit": "food-drink",
    "food-prepared": "food-drink",
    "food-vegetable": "food-drink",
    "musical-instrument": "objects",
    "place-building": "travel-places",
    "plant-flower": "animals-nature",
    "sport": "activities",
    "tool": "objects",
    "transport-air": "travel-places",
    "transport-ground": "travel-places",
}
NUM_SCENES = {"train": 2000, "val": 400}
SCENE_SIZE = 320
LARGEST_CROP = 0.9  # of the photograph's short side
MOST_GLYPHS = 5
SMALLEST_GLYPH, LARGEST_GLYPH = 32.0, 140.0  # longer side in pixels, before the glyph is turned
LARGEST_ANGLE = 20.0  # degrees, either way
OVERHANG = 0.3  # of a glyph's width and height may lie beyond the border
FEATHER = 1.0  # pixels over which an edge fades, by a Gaussian
MARGIN = 3  # transparent pixels around a glyph, for its edge to fade in
OPAQUE = 127  # a pixel belongs to the glyph whose alpha is above, 0 to 255
JPEG_QUALITY = 90
MIN_VISIBLE_SHARE, MIN_VISIBLE_AREA = 0.25, 64  # of its pixels, and in pixels: below either it is not asked for
ATTRIBUTION = """# {name}

{styles}
Changes: the pictures were scaled, mirrored and turned, their edges were softened, and they were laid upon crops of the
photographs below. {note}

"""


class Naming(NamedTuple):
    """Which classes a data set makes of the subgroups, and what it is called for that."""

    class_of: Mapping[str, str]  # of each subgroup
    groups: Mapping[str, str]  # of each class, in the order of their labels
    suffix: str = ""  # of the name on the command line
    remark: str = ""  # in the title

    def title(self, name: str) -> str:
        """What stands beside every figure, for example `EmojiADE, class-agnostic (synthetic composites)`."""
        return f"{name}{self.remark} (synthetic composites)"

    def counted(self) -> str:
        """For example `16 classes`."""
        return f"{len(self.groups)} class{'es' * (len(self.groups) != 1)}"


BY_SUBGROUP = Naming({name: name for name in CLASSES}, CLASSES)
AGNOSTIC = Naming(dict.fromkeys(CLASSES, "emoji"), {"emoji": "emoji"}, "-agnostic", ", class-agnostic")


class Glyph(NamedTuple):
    """An emoji and its picture in RGBA."""

    emoji: Emoji
    picture: Image.Image


class Material(NamedTuple):
    """What scenes are made of: the glyphs of each split and class, the photographs; and whom to thank."""

    glyphs: Mapping[str, Mapping[str, Sequence[Glyph]]]
    backgrounds: Backgrounds
    photographs: Sequence[Photograph]
    sources: list[Source]
    credits: str

    def attribution(self, name: str, note: str) -> str:
        """The text of the file of credits, under the name of the data set."""
        return ATTRIBUTION.format(name=name, styles=self.credits, note=note) + credit_table(self.photographs)


class Instance(NamedTuple):
    """What is to be seen of one emoji. A crowd, in the sense of COCO, is too little of one to be asked for."""

    emoji: Emoji
    number: int  # in the scene, in the order of painting, from 1
    mask: Bool[np.ndarray, "height width"]
    is_crowd: bool


@dataclass(frozen=True)
class Scene:
    """An image, and which emoji each of its pixels belongs to: the number of one, or 0 for the photograph.

    `whole_areas` are the opaque pixels of each emoji, with those that lie under others or beyond the border.
    """

    image: Image.Image
    photograph: str
    emoji: tuple[Emoji, ...]
    whole_areas: tuple[int, ...]
    owners: UInt8[np.ndarray, "height width"]

    def instances(self) -> list[Instance]:
        """The emoji of which anything is to be seen, in the order of painting."""
        found = []
        for number, (emoji, whole_area) in enumerate(zip(self.emoji, self.whole_areas, strict=True), start=1):
            mask = self.owners == number
            area = int(mask.sum())
            if area:
                is_crowd = area < MIN_VISIBLE_AREA or area < MIN_VISIBLE_SHARE * whole_area
                found.append(Instance(emoji, number, mask, is_crowd))
        return found


def fetch_material(workspace: Path) -> Material:
    """Fetch emoji and photographs, or find them installed. Raises DataError if a package cannot be had."""
    art = fetch_art(workspace, ["fluent"])
    photographs, photograph_sources = fetch_photographs(workspace)
    return Material(
        divide(art.emoji, art.styles["fluent"]),
        open_backgrounds(photographs, short_side=SHORT_SIDE),
        photographs,
        [*art.sources, *photograph_sources],
        art.credits,
    )


def divide(emoji: Sequence[Emoji], style: Style) -> dict[str, dict[str, list[Glyph]]]:
    """The glyphs of each split and class that the style draws; a class without any is left out."""
    glyphs: dict[str, dict[str, list[Glyph]]] = {split: {} for split in SPLITS}
    for one in emoji:
        picture = style.picture(one.codepoints) if one.subgroup in CLASSES else None
        if picture is not None:
            glyphs[emoji_split(one)].setdefault(one.subgroup, []).append(Glyph(one, picture))
    return glyphs


def scenes(material: Material, split: str) -> Iterator[Scene]:
    """All scenes of a split, the first with the number 1."""
    numbers = range(1, NUM_SCENES[split] + 1)
    for number in track(numbers, label=f"composing scenes of {split}", total=len(numbers)):
        yield compose(material, split, number)


def compose(material: Material, split: str, number: int) -> Scene:
    """One scene: a random crop of a photograph, and upon it glyphs of any class, later ones over earlier ones."""
    generator = named_generator("scene", split, str(number))
    photographs, classes = material.backgrounds[split], material.glyphs[split]
    name = str(generator.choice(sorted(photographs)))
    image = random_crop(photographs[name], generator, size=SCENE_SIZE, largest=LARGEST_CROP)
    owners = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    emoji, areas = [], []
    for _ in range(int(generator.integers(1, MOST_GLYPHS + 1))):
        glyphs = classes[str(generator.choice(sorted(classes)))]
        glyph = glyphs[int(generator.integers(len(glyphs)))]
        picture = cut_out(glyph.picture, generator)
        emoji.append(glyph.emoji)
        areas.append(int((np.asarray(picture.getchannel("A")) > OPAQUE).sum()))
        paint(picture, image, owners, len(emoji), place(picture, generator))
    return Scene(image, name, tuple(emoji), tuple(areas), owners)


def cut_out(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The glyph at a random size and angle, or its mirror image, with softened edges."""
    glyph = trim(picture)
    if generator.random() < 0.5:
        glyph = ImageOps.mirror(glyph)
    longer_side = math.exp(generator.uniform(math.log(SMALLEST_GLYPH), math.log(LARGEST_GLYPH)))
    return feather(turn(scale(glyph, longer_side), generator.uniform(-LARGEST_ANGLE, LARGEST_ANGLE)))


def feather(glyph: Image.Image) -> Image.Image:
    """Let the edges fade, inwards alone: outside of its outline a glyph has no colour that could be shown."""
    padded = ImageOps.expand(glyph, border=MARGIN)
    alpha = padded.getchannel("A")
    padded.putalpha(ImageChops.darker(alpha, alpha.filter(ImageFilter.GaussianBlur(FEATHER))))
    return padded


def place(glyph: Image.Image, generator: np.random.Generator) -> tuple[int, int]:
    """Left and top of the glyph in a scene, which may begin before the border or end behind it."""
    ends = [(-OVERHANG * side, SCENE_SIZE - (1 - OVERHANG) * side) for side in glyph.size]
    left, top = (round(generator.uniform(low, high)) for low, high in ends)
    return left, top


def paint(
    glyph: Image.Image,
    image: Image.Image,
    owners: UInt8[np.ndarray, "height width"],
    number: int,
    corner: tuple[int, int],
) -> None:
    """Lay the glyph upon the image, in place, and enter its number as the owner of its opaque pixels."""
    image.paste(glyph, corner, glyph)
    alpha = Image.new("L", image.size)
    alpha.paste(glyph.getchannel("A"), corner)
    owners[np.asarray(alpha) > OPAQUE] = number
