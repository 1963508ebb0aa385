"""Credits, crops and the split of the photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
from machine import Machine
from PIL import Image

from mcbeit.prepare import photos, prepare
from mcbeit.prepare.credits import Credit, credit_of
from mcbeit.prepare.photos import (
    Photograph,
    credit_table,
    detail,
    detailed_crop,
    open_photograph,
    photograph_name,
    random_crop,
)

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2000, Everybody
License: GPL-2+

Files: 16.04/Bridge_by_Sander.jpg
       16.04/Lake_by_Sander.jpg
Copyright: 2018, Sander <sander@example.org>`
           2019, Lapo
License: CC-BY-4.0
Comment: taken in spring

License: CC-BY-4.0
 Attribution 4.0 International
 .
 Files: are mentioned here
"""
NATURE = COPYRIGHT.replace("16.04/", "nature/").replace("_by_Sander", "").replace("Files: *", "Files: debian/*")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def test_credit_of__the_last_entry_that_matches() -> None:
    assert credit_of(COPYRIGHT, "16.04/Lake_by_Sander.jpg") == Credit("2018, Sander; 2019, Lapo", "CC-BY-4.0")
    assert credit_of(COPYRIGHT, "16.04/Other.jpg") == Credit("2000, Everybody", "GPL-2+")
    assert credit_of(NATURE, "nature/Other.jpg") is None


def test_credit__links_the_licences_it_knows() -> None:
    assert Credit("x", "CC-BY-4.0").licence_text == "[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)"
    assert Credit("x", "Beerware").licence_text == "Beerware"


def load(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def stock(machine: Machine, *, size: int = 200) -> None:
    """Three photographs, one computer image, and a file that the package does not credit."""
    machine.add_apt()
    backgrounds = "usr/share/backgrounds"
    text = COPYRIGHT.replace("Files: *", "Files: 16.04/umang_by_Abhishek_Mudgal.jpg")
    names = ("Bridge_by_Sander", "Lake_by_Sander", "umang_by_Abhishek_Mudgal", "Else_by_Nobody")
    lomiri = {f"{backgrounds}/{name}.jpg": jpeg(noise(size, size + 40, seed)) for seed, name in enumerate(names)}
    lomiri["usr/share/doc/lomiri-wallpapers-16.04/copyright"] = text.encode()
    machine.stock_debian("lomiri-wallpapers-16.04", lomiri)
    mate = {
        f"{backgrounds}/mate/nature/Lake.jpg": jpeg(noise(size, size, 9)),
        "usr/share/doc/mate-backgrounds/copyright": NATURE.encode(),
    }
    machine.stock_debian("mate-backgrounds", mate)


def test_prepare__cuts_each_photograph_into_its_split(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(machine)
    monkeypatch.setattr(photos, "NUM_CROPS", {"train": 4, "val": 2})
    monkeypatch.setattr(photos, "VALIDATION_SHARE", 0.5)
    manifest = prepare("photos", tmp_path / "out").manifest
    splits = {name: split for split, names in manifest.counts.items() for name in names}
    assert splits == {
        name: photos.split_of(name, validation_share=0.5) for name in ("bridge-by-sander", "lake-by-sander", "lake")
    }
    assert {split: set(counts.values()) for split, counts in manifest.counts.items()} == {"train": {4}, "val": {2}}
    paths = list((tmp_path / "out").glob("*/*/*.jpg"))
    assert {load(path).shape for path in paths} == {(160, 160, 3)}
    assert len({path.read_bytes() for path in paths}) == len(paths)
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert f"| lake-by-sander | {splits['lake-by-sander']} | Lake_by_Sander.jpg | 2018, Sander; 2019, Lapo |" in text
    assert [source.licence for source in manifest.sources] == ["CC-BY-4.0", "CC-BY-4.0"]
    assert prepare("photos", tmp_path / "again").manifest == manifest


def test_split__is_a_matter_of_the_name() -> None:
    names = [f"photo-{index}" for index in range(200)]
    splits = [Photograph(name, Path(name), Credit("x", "MIT")).split for name in names]
    assert splits == [photos.split_of(name, validation_share=photos.VALIDATION_SHARE) for name in names]
    assert 20 < splits.count("val") < 60


def test_photograph_name() -> None:
    assert photograph_name(Path("/x/Bridge_by_Sander_Klootwijk.jpg")) == "bridge-by-sander-klootwijk"


def test_open_photograph__upright_and_scaled_down(tmp_path: Path) -> None:
    image = noise(300, 600)
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    opened = open_photograph(tmp_path / "a.jpg", short_side=150)
    assert opened.size == (150, 300)
    assert open_photograph(tmp_path / "a.jpg", short_side=1000).size == (300, 600)


@pytest.mark.parametrize(("height", "width"), [(400, 300), (128, 500), (90, 100)])
def test_random_crop__always_has_the_size_asked_for(height: int, width: int) -> None:
    image = noise(height, width)
    generator = np.random.default_rng(0)
    crops = [random_crop(image, generator, size=128, largest=0.9) for _ in range(20)]
    assert {crop.size for crop in crops} == {(128, 128)}
    again = random_crop(image, np.random.default_rng(0), size=128, largest=0.9)
    assert again.tobytes() == crops[0].tobytes()


def test_detailed_crop__avoids_the_empty_half() -> None:
    image = Image.new("RGB", (1200, 400), "skyblue")
    image.paste(noise(400, 600), (600, 0))
    assert detail(Image.new("RGB", (160, 160), "skyblue")) == 0
    crops = [detailed_crop(image, np.random.default_rng(seed)) for seed in range(10)]
    assert min(detail(crop) for crop in crops) > photos.MIN_DETAIL


def test_detailed_crop__takes_what_there_is() -> None:
    crop = detailed_crop(Image.new("RGB", (300, 300), "skyblue"), np.random.default_rng(0))
    assert crop.getpixel((0, 0)) == (135, 206, 235)


def test_credit_table__one_line_per_photograph() -> None:
    lines = credit_table([Photograph("lake", Path("Lake.jpg"), Credit("Lapo", "MIT"))]).splitlines()
    assert lines[2].startswith("| lake | ")
    assert lines[2].endswith(" | Lake.jpg | Lapo | [MIT](https://opensource.org/license/mit) |")
