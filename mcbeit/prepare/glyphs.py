"""Emoji: which there are, their groups, which of them count as one, and their pictures: found, cut out and turned."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image

from mcbeit.errors import DataError

IGNORED = {"fe0f", "200d", "2640", "2642", "27a1", "1f9b0", "1f9b1", "1f9b2", "1f9b3"}  # after the first codepoint
PEOPLE = {"1f9d1", "1f9d2"}
SAME_PERSON = {
    "1f468": "1f9d1",  # man, woman: person
    "1f469": "1f9d1",
    "1f466": "1f9d2",  # boy, girl: child
    "1f467": "1f9d2",
    "1f474": "1f9d3",  # old man, old woman: older person
    "1f475": "1f9d3",
    "1f934": "1fac5",  # prince, princess: person with crown
    "1f478": "1fac5",
    "1f57a": "1f483",  # dancing man, dancing woman
    "1fac3": "1f930",  # pregnant man, person, woman
    "1fac4": "1f930",
}
SAME_SEQUENCE = {
    "1f385": "1f9d1-1f384",  # Santa Claus, Mrs. Claus, Mx Claus
    "1f936": "1f9d1-1f384",
    "1f46b": "1f9d1-1f91d-1f9d1",  # couples holding hands
    "1f46c": "1f9d1-1f91d-1f9d1",
    "1f46d": "1f9d1-1f91d-1f9d1",
    "1f491": "1f9d1-2764-1f9d1",  # couple with heart
    "1f48f": "1f9d1-2764-1f48b-1f9d1",  # kiss
    "1f46a": "family",
}
SAME_PICTURE = {
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # territories that fly another flag: Bouvet Island, Svalbard: Norway
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # Heard Island: Australia
    "1f1e8-1f1f5": "1f1eb-1f1f7",  # Clipperton, Saint Martin: France
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # Diego Garcia: British Indian Ocean Territory
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Ceuta: Spain
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # U.S. outlying islands: United States
    "1f63a": "1f431",  # Fluent draws the grinning cat as the cat face
}
RESAMPLING = Image.Resampling.BICUBIC


class Emoji(NamedTuple):
    """One emoji; `codepoints` is its fully qualified sequence such as `2764-fe0f`.

    `group` is one of Unicode's nine, such as `food-drink`, and `subgroup` one of its hundred, such as `food-fruit`.
    """

    codepoints: str
    group: str
    subgroup: str

    @property
    def base(self) -> str:
        """The same for all emoji that must not be divided between splits: gender, hair, direction, same picture."""
        return base_of(self.codepoints)


@runtime_checkable  # the tests check annotations
class Style(Protocol):
    """A drawer of emoji pictures."""

    def picture(self, codepoints: str) -> Image.Image | None:
        """The picture in RGBA, or None if this style lacks it."""


def read_emoji(path: Path) -> list[Emoji]:
    """The emoji of an emoji-data `emoji.json`, without skin tones; groups as slugs, for example `food-drink`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return sorted(
        Emoji(row["unified"].lower(), group_slug(row["category"]), row["subcategory"])
        for row in rows
        if row["category"] != "Component"
    )


def group_slug(category: str) -> str:
    """`Food & Drink` -> `food-drink`."""
    return "-".join(category.lower().replace("&", " ").split())


def base_of(codepoints: str) -> str:
    """What is left of a sequence without gender, hair and direction."""
    first, *rest = codepoints.split("-")
    parts = [SAME_PERSON.get(part, part) for part in (first, *(part for part in rest if part not in IGNORED))]
    if len(parts) > 1 and PEOPLE.issuperset(parts):
        return "family"
    sequence = "-".join(parts)
    return SAME_SEQUENCE.get(sequence) or SAME_PICTURE.get(sequence, sequence)


def unqualified(codepoints: str) -> str:
    """Without the variation selector and without leading zeros: vendors write both differently."""
    return "-".join(part.lstrip("0") for part in codepoints.lower().split("-") if part != "fe0f")


def trim(glyph: Image.Image) -> Image.Image:
    """The RGBA picture without its transparent margins."""
    return glyph.crop(glyph.getchannel("A").getbbox())


def scale(glyph: Image.Image, longer_side: float) -> Image.Image:
    """The picture with a longer side of so many pixels."""
    factor = longer_side / max(glyph.size)
    return glyph.resize((max(1, round(glyph.width * factor)), max(1, round(glyph.height * factor))), RESAMPLING)


def turn(glyph: Image.Image, angle: float) -> Image.Image:
    """The RGBA picture turned to the left by so many degrees, without transparent margins."""
    return trim(glyph.rotate(angle, resample=RESAMPLING, expand=True))


@dataclass(frozen=True)
class FolderStyle:
    """A style with one picture file per emoji, named by its codepoints."""

    paths: Mapping[str, Path]

    @classmethod
    def open(cls, paths: list[Path]) -> "FolderStyle":
        """Index the files; if two name the same emoji the first in order counts."""
        return cls({unqualified(path.stem): path for path in sorted(paths, reverse=True)})

    def picture(self, codepoints: str) -> Image.Image | None:
        """The picture in RGBA, or None if this style lacks it."""
        path = self.paths.get(unqualified(codepoints))
        if path is None:
            return None
        with Image.open(path) as file:
            return file.convert("RGBA")


@dataclass(frozen=True)
class BitmapFontStyle:
    """A colour font with PNG glyphs (CBDT), such as Noto Color Emoji; sequences are its ligatures."""

    glyphs: Mapping[tuple[str, ...], str]  # glyph names of the codepoints -> name of the glyph for all of them
    names: Mapping[int, str]
    bitmaps: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "BitmapFontStyle":
        """Read the tables of a font file."""
        try:
            from fontTools.ttLib import TTFont
        except ImportError as error:
            raise DataError('the Python package fonttools is not installed\npip install "mcbeit[emoji]"') from error
        font = TTFont(io.BytesIO(path.read_bytes()), lazy=True)  # holds no open file
        return cls(_ligatures(font), font.getBestCmap(), font["CBDT"].strikeData[0])

    def picture(self, codepoints: str) -> Image.Image | None:
        """The picture in RGBA, or None if this style lacks it."""
        names = [self.names.get(int(part, 16)) for part in unqualified(codepoints).split("-")]
        if None in names:
            return None
        sequence = tuple(name for name in names if name is not None)
        glyph = sequence[0] if len(sequence) == 1 else self.glyphs.get(sequence)
        if glyph is None or glyph not in self.bitmaps:
            return None
        with Image.open(io.BytesIO(self.bitmaps[glyph].imageData)) as file:
            return file.convert("RGBA")


def _ligatures(font: Any) -> dict[tuple[str, ...], str]:
    """Every ligature substitution of the font."""
    found: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    found.setdefault((first, *ligature.Component), ligature.LigGlyph)
    return found
