"""Which emoji there are, which count as one, and their pictures in folders and fonts."""

from pathlib import Path

import pytest
from pictures import EMOJI, bitmap_font, noise, table
from PIL import Image

from mcbeit.prepare.glyphs import (
    BitmapFontStyle,
    FolderStyle,
    base_of,
    group_slug,
    read_emoji,
    scale,
    trim,
    turn,
    unqualified,
)


@pytest.mark.parametrize(
    "twins",
    [
        ("1f9d1-200d-2695-fe0f", "1f468-200d-2695-fe0f", "1f469-200d-2695-fe0f"),  # health worker
        ("1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-200d-2642-fe0f-200d-27a1-fe0f"),  # running, to the right
        ("1f468-200d-1f9b0", "1f469-200d-1f9b3", "1f9d1"),  # hair
        ("1f46a", "1f468-200d-1f469-200d-1f466", "1f9d1-200d-1f9d2"),  # family
        ("1f46b", "1f9d1-200d-1f91d-200d-1f9d1"),  # couple
        ("1f491", "1f469-200d-2764-fe0f-200d-1f468"),  # in love
        ("1f385", "1f936", "1f9d1-200d-1f384"),  # Santa Claus
        ("1f934", "1f478", "1fac5"),  # prince, princess
        ("1f1f3-1f1f4", "1f1f8-1f1ef", "1f1e7-1f1fb"),  # the flag of Norway
        ("1f431", "1f63a"),  # one picture in Fluent
    ],
)
def test_base_of__is_the_same_for_twins(twins: tuple[str, ...]) -> None:
    assert len({base_of(codepoints) for codepoints in twins}) == 1


def test_base_of__keeps_others_apart() -> None:
    others = ["2640-fe0f", "2642-fe0f", "27a1-fe0f", "1f9d1", "1f9d2", "1f9d3", "1f600", "1f1f3-1f1f4", "1f1eb-1f1f7"]
    assert len({base_of(codepoints) for codepoints in others}) == len(others)
    assert base_of("2764-fe0f") == "2764"


def test_read_emoji__without_skin_tones(tmp_path: Path) -> None:
    (tmp_path / "emoji.json").write_bytes(table(EMOJI))
    assert read_emoji(tmp_path / "emoji.json") == sorted(EMOJI)


def test_group_slug() -> None:
    assert group_slug("Smileys & Emotion") == "smileys-emotion"
    assert group_slug("Flags") == "flags"


def test_folder_style__finds_both_spellings(tmp_path: Path) -> None:
    for name in ("0039-fe0f-20e3", "2764"):
        noise(3, 8).convert("P").save(tmp_path / f"{name}.png")
    style = FolderStyle.open(list(tmp_path.glob("*.png")))
    for codepoints in ("39-20e3", "0039-fe0f-20e3", "2764-fe0f"):
        picture = style.picture(codepoints)
        assert picture is not None
        assert picture.mode == "RGBA"
    assert style.picture("1f600") is None
    assert unqualified("0023-FE0F-20E3") == "23-20e3"


def test_bitmap_font_style__single_glyphs_and_ligatures(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(bitmap_font())
    style = BitmapFontStyle.open(tmp_path / "font.ttf")
    for codepoints, colour in {"1f9d1": (255, 255, 0, 255), "1f9d1-200d-2695-fe0f": (0, 128, 0, 255)}.items():
        picture = style.picture(codepoints)
        assert picture is not None
        assert picture.getpixel((0, 0)) == colour
    for missing in ("1f600", "1f9d1-2695", "200d"):
        assert style.picture(missing) is None


def test_trim_scale_turn__cut_to_what_is_to_be_seen() -> None:
    glyph = Image.new("RGBA", (60, 40))
    glyph.paste("red", (10, 10, 30, 20))
    assert trim(glyph).size == (20, 10)
    assert scale(trim(glyph), 50.0).size == (50, 25)
    assert turn(trim(glyph), 90.0).size == (10, 20)
    width, height = turn(scale(trim(glyph), 200.0), 30.0).size
    assert width == pytest.approx(200 * 0.866 + 100 * 0.5, abs=4)
    assert height == pytest.approx(200 * 0.5 + 100 * 0.866, abs=4)
