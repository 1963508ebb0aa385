"""The same emoji drawn by three hands, each alone on white: for retrieval of one style by another.

`SPLIT/STYLE/CODEPOINTS.png`, and only emoji that every style has. The splits are those of the data set `emoji`, so a
backbone that was trained on its `train` has seen none of the emoji of `val`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from mcbeit.prepare.emoji_art import emoji_split, fetch_art
from mcbeit.prepare.folder import Built, DataSet
from mcbeit.prepare.glyphs import Emoji, Style, scale, trim
from mcbeit.prepare.progress import track

IMAGE_SIZE = 128
GLYPH_SHARE = 0.85  # longer side of a glyph, as a share of the image
ATTRIBUTION = """# Emoji in three styles on white

{styles}
Changes: the pictures were cut to their outlines, scaled and laid upon white. A file name is CODEPOINTS.png.
"""


def build(tree: Path, workspace: Path) -> Built:
    """Write both splits under `tree`."""
    art = fetch_art(workspace)
    write_images(art.emoji, art.styles, tree)
    return Built(art.sources, ATTRIBUTION.format(styles=art.credits))


def write_images(emoji: Sequence[Emoji], styles: Mapping[str, Style], tree: Path) -> None:
    """Write `SPLIT/STYLE/CODEPOINTS.png` for each emoji that every style has."""
    for split in ("train", "val"):
        for style in styles:
            (tree / split / style).mkdir(parents=True)
    for one in track(emoji, label="drawing emoji", total=len(emoji)):
        glyphs = {name: style.picture(one.codepoints) for name, style in styles.items()}
        for name, glyph in glyphs.items():
            if glyph is not None and None not in glyphs.values():
                on_white(glyph).save(tree / emoji_split(one) / name / f"{one.codepoints}.png")


def on_white(glyph: Image.Image) -> Image.Image:
    """The RGBA glyph in the middle of a white square."""
    glyph = scale(trim(glyph), GLYPH_SHARE * IMAGE_SIZE)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    image.paste(glyph, ((IMAGE_SIZE - glyph.width) // 2, (IMAGE_SIZE - glyph.height) // 2), glyph)
    return image


EMOJI_STYLES = DataSet(name="emoji-styles", builder_version=1, seed=0, build=build)
