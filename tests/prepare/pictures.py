"""Emoji to test with: 20 vendored Fluent pictures, a tiny bitmap font, a table of groups."""

import io
import json
from pathlib import Path

import numpy as np
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import BitmapSizeTable, SbitLineMetrics, Strike, eblc_index_sub_table_1
from PIL import Image

from mcbeit.prepare.glyphs import Emoji, FolderStyle, group_slug

FIXTURE = Path(__file__).parents[1] / "fixtures" / "emoji"
GROUPS = {
    "smileys-emotion": ("1f600", "1f60d", "2764-fe0f"),
    "people-body": ("1f9d1-200d-2695-fe0f", "1f468-200d-2695-fe0f", "1f469-200d-2695-fe0f", "1f44d"),
    "animals-nature": ("1f436", "1f427"),
    "food-drink": ("1f34e", "1f355", "1f35e"),
    "travel-places": ("1f680", "1f3e0"),
    "activities": ("26bd",),
    "objects": ("1f4a1", "1f511"),
    "symbols": ("267b-fe0f",),
    "flags": ("1f3c1", "1f6a9"),
}
SUBGROUPS = {  # of things; the others here are none
    "1f436": "animal-mammal",
    "1f427": "animal-bird",
    "1f34e": "food-fruit",
    "1f355": "food-prepared",
    "1f35e": "food-prepared",
    "1f680": "transport-air",
    "1f3e0": "place-building",
    "26bd": "sport",
}
EMOJI = [Emoji(code, group, SUBGROUPS.get(code, "other")) for group, members in GROUPS.items() for code in members]


def noise(seed: int, size: int = 200) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def table(emoji: list[Emoji]) -> bytes:
    """An `emoji.json`; skin tones are a component."""
    titles = {group_slug(title): title for title in ("Smileys & Emotion", "People & Body", "Animals & Nature",
        "Food & Drink", "Travel & Places", "Activities", "Objects", "Symbols", "Flags")}  # fmt: skip
    rows = [
        {"unified": one.codepoints.upper(), "category": titles[one.group], "subcategory": one.subgroup} for one in emoji
    ]
    return json.dumps([*rows, {"unified": "1F3FB", "category": "Component", "subcategory": "skin-tone"}]).encode()


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (12, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def bitmap_font() -> bytes:
    """A font with four PNG glyphs; person + zwj + medical sign gives the fourth."""
    pictures = {"person": png("yellow"), "medical": png("blue"), "worker": png("green")}
    names = [".notdef", "zwj", *pictures]
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({0x1F9D1: "person", 0x2695: "medical", 0x200D: "zwj"})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader()
    builder.setupNameTable({"familyName": "Test"})
    builder.setupOS2()
    builder.setupPost()
    font = builder.font
    addOpenTypeFeaturesFromString(font, "feature ccmp { sub person zwj medical by worker; } ccmp;")
    font["CBDT"], font["CBLC"] = newTable("CBDT"), newTable("CBLC")
    font["CBDT"].version = font["CBLC"].version = 3.0
    font["CBDT"].strikeData = [{name: bitmap(data) for name, data in pictures.items()}]
    font["CBLC"].strikes = [strike(list(pictures))]
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue()


LINE_METRICS = (
    *("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset"),
    *("minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"),
)


def bitmap(data: bytes) -> cbdt_bitmap_format_17:
    made = cbdt_bitmap_format_17(b"", None)
    made.metrics = SmallGlyphMetrics()
    made.metrics.height, made.metrics.width = 10, 12
    made.metrics.BearingX = made.metrics.BearingY = made.metrics.Advance = 0
    made.imageData = data
    return made


def strike(names: list[str]) -> Strike:
    made = Strike()
    made.bitmapSizeTable = size = BitmapSizeTable()
    size.colorRef, size.flags, size.bitDepth, size.ppemX, size.ppemY = 0, 1, 32, 12, 12
    for direction in ("hori", "vert"):
        line = SbitLineMetrics()
        for field in LINE_METRICS:
            setattr(line, field, 0)
        setattr(size, direction, line)
    index = eblc_index_sub_table_1(b"", None)
    index.names, index.indexFormat, index.imageFormat = names, 1, 17
    made.indexSubTables = [index]
    return made


def fluent() -> FolderStyle:
    return FolderStyle.open(list(FIXTURE.glob("*.webp")))
