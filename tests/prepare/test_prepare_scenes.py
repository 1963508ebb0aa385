"""Scenes: what covers what, soft edges, what is too little to be asked for, and that a number makes the same scene."""

import numpy as np
import pytest
from pictures import EMOJI, SUBGROUPS, fluent
from PIL import Image
from scenery import few_scenes, make_material

from mcbeit.prepare.glyphs import FolderStyle
from mcbeit.prepare.scenes import (
    CLASSES,
    MARGIN,
    SCENE_SIZE,
    Material,
    Scene,
    compose,
    cut_out,
    divide,
    feather,
    paint,
    place,
    scenes,
)


@pytest.fixture
def material(monkeypatch: pytest.MonkeyPatch) -> Material:
    few_scenes(monkeypatch, train=5, val=3)
    return make_material()


def square(colour: str, side: int = 20) -> Image.Image:
    return Image.new("RGBA", (side, side), colour)


def empty() -> tuple[Image.Image, np.ndarray]:
    size = (SCENE_SIZE, SCENE_SIZE)
    return Image.new("RGB", size, "white"), np.zeros(size, dtype=np.uint8)


# classes and splits


def test_divide__things_only_and_no_emoji_in_both_splits(material: Material) -> None:
    found = {split: {glyph.emoji.codepoints for glyphs in classes.values() for glyph in glyphs}
             for split, classes in material.glyphs.items()}  # fmt: skip
    assert found == {"train": {"1f436", "1f427", "1f34e", "1f3e0"}, "val": {"1f355", "1f35e", "1f680", "26bd"}}
    for classes in material.glyphs.values():
        for name, glyphs in classes.items():
            assert {glyph.emoji.subgroup for glyph in glyphs} == {name}
            assert name in CLASSES


def test_divide__leaves_out_what_the_style_does_not_draw() -> None:
    style = FolderStyle({"1f436": fluent().paths["1f436"]})
    glyphs = [glyph for classes in divide(EMOJI, style).values() for group in classes.values() for glyph in group]
    assert [glyph.emoji.codepoints for glyph in glyphs] == ["1f436"]
    assert glyphs[0].picture.mode == "RGBA"


def test_classes__are_of_the_groups_that_they_name() -> None:
    assert len(CLASSES) == 16
    groups = {one.subgroup: one.group for one in EMOJI if one.codepoints in SUBGROUPS}
    assert groups == {name: CLASSES[name] for name in groups}


# painting


def test_paint__later_ones_cover_earlier_ones() -> None:
    image, owners = empty()
    paint(square("red"), image, owners, 1, (100, 50))
    paint(square("blue"), image, owners, 2, (110, 60))
    expected = np.zeros_like(owners)
    expected[50:70, 100:120] = 1
    expected[60:80, 110:130] = 2
    np.testing.assert_array_equal(owners, expected)
    pixels = np.asarray(image)
    assert (pixels[owners == 1] == (255, 0, 0)).all()
    assert (pixels[owners == 2] == (0, 0, 255)).all()
    assert (pixels[owners == 0] == 255).all()


def test_paint__is_cut_at_the_border() -> None:
    image, owners = empty()
    for number, corner in enumerate([(-5, -15), (SCENE_SIZE - 4, 7)], start=1):
        paint(square("red"), image, owners, number, corner)
    assert (owners == 1).sum() == 15 * 5
    assert (owners[:5, :15] == 1).all()
    assert (owners == 2).sum() == 4 * 20
    assert (owners[7:27, -4:] == 2).all()


def test_paint__a_pixel_belongs_to_what_covers_more_than_half_of_it() -> None:
    image, owners = empty()
    glyph = square("red", 2)
    glyph.putalpha(Image.fromarray(np.array([[0, 127], [128, 255]], dtype=np.uint8)))
    paint(glyph, image, owners, 1, (0, 0))
    assert owners[:2, :2].tolist() == [[0, 0], [1, 1]]


def test_feather__fades_inwards_and_keeps_colours() -> None:
    soft = feather(square("red"))
    pixels = np.asarray(soft)
    assert soft.size == (20 + 2 * MARGIN, 20 + 2 * MARGIN)
    alpha = pixels[..., 3].astype(int)
    row = alpha[MARGIN + 10]
    assert (row[:MARGIN] == 0).all()
    assert (np.diff(row[MARGIN : MARGIN + 4]) > 0).all()  # the edge
    assert 127 < row[MARGIN] < 255
    assert (row[MARGIN + 4 : MARGIN + 16] == 255).all()  # the inside
    assert (pixels[alpha > 0][:, :3] == (255, 0, 0)).all()


def test_cut_out__sizes_mirrors_and_angles() -> None:
    wedge = Image.new("RGBA", (100, 50))
    wedge.paste("red", (0, 0, 50, 50))
    wedge.paste("blue", (50, 20, 100, 30))
    longer, red_is_left = [], []
    for seed in range(100):
        pixels = np.asarray(cut_out(wedge, np.random.default_rng(seed)))
        opaque = pixels[..., 3] > 127
        rows, columns = (np.flatnonzero(opaque.any(axis=axis)) for axis in (1, 0))
        longer.append(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)
        red = np.nonzero(opaque & (pixels[..., 0] > 200))[1].mean()
        blue = np.nonzero(opaque & (pixels[..., 2] > 200))[1].mean()
        red_is_left.append(red < blue)
    assert 25 < min(longer) < 40
    assert 120 < max(longer) < 150
    assert 30 < sum(red_is_left) < 70


def test_place__within_reach_of_every_border() -> None:
    glyph = square("red", 100)
    corners = np.array([place(glyph, np.random.default_rng(seed)) for seed in range(400)])
    assert corners.min(axis=0).tolist() == pytest.approx([-30, -30], abs=3)
    assert corners.max(axis=0).tolist() == pytest.approx([SCENE_SIZE - 70, SCENE_SIZE - 70], abs=3)


# scenes


def test_compose__is_a_function_of_split_and_number(material: Material) -> None:
    for split in ("train", "val"):
        one, again, other = (compose(material, split, number) for number in (3, 3, 4))
        assert one.image.tobytes() == again.image.tobytes()
        assert one.emoji == again.emoji
        np.testing.assert_array_equal(one.owners, again.owners)
        assert one.image.tobytes() != other.image.tobytes()
    assert len(list(scenes(material, "train"))) == 5
    assert next(scenes(material, "val")).image.tobytes() == compose(material, "val", 1).image.tobytes()


def test_compose__uses_what_belongs_to_the_split_and_all_of_it(material: Material) -> None:
    for split, photographs in {"train": {"lake", "wood"}, "val": {"dune", "reef"}}.items():
        made = [compose(material, split, number) for number in range(40)]
        assert {scene.photograph for scene in made} == photographs
        used = {emoji.codepoints for scene in made for emoji in scene.emoji}
        assert used == {glyph.emoji.codepoints for group in material.glyphs[split].values() for glyph in group}
        assert {len(scene.emoji) for scene in made} == {1, 2, 3, 4, 5}
        assert {scene.image.size for scene in made} == {(320, 320)}


def test_compose__pixels_without_an_owner_are_the_photograph(material: Material) -> None:
    """But for faded edges: a grey photograph shows where anything was painted."""
    grey = {"train": {"grey": Image.new("RGB", (400, 400), (127, 127, 127))}}
    for number in range(10):
        scene = compose(material._replace(backgrounds=grey), "train", number)
        pixels = np.asarray(scene.image).astype(int)
        is_grey = (abs(pixels - 127) <= 1).all(axis=2)
        assert is_grey[scene.owners == 0].mean() > 0.97
        assert is_grey[scene.owners > 0].mean() < 0.05


def scene_of(areas: list[tuple[int, int]]) -> Scene:
    """A scene that shows so many pixels of each emoji of so large a one."""
    owners = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    for number, (visible, _) in enumerate(areas, start=1):
        owners[number, :visible] = number
    emoji = tuple(EMOJI[: len(areas)])
    return Scene(Image.new("RGB", owners.shape), "lake", emoji, tuple(whole for _, whole in areas), owners)


def test_instances__too_little_of_an_emoji_is_a_crowd() -> None:
    scene = scene_of([(64, 64), (63, 63), (0, 500), (100, 400), (100, 401)])
    found = scene.instances()
    assert [instance.number for instance in found] == [1, 2, 4, 5]  # of the third nothing is to be seen
    assert [instance.is_crowd for instance in found] == [False, True, False, True]
    assert [instance.emoji for instance in found] == [EMOJI[0], EMOJI[1], EMOJI[3], EMOJI[4]]
    for instance in found:
        np.testing.assert_array_equal(instance.mask, scene.owners == instance.number)


def test_instances__share_no_pixel(material: Material) -> None:
    for number in range(20):
        scene = compose(material, "train", number)
        covered = np.sum([instance.mask for instance in scene.instances()], axis=0)
        np.testing.assert_array_equal(covered, scene.owners > 0)
