"""Material of scenes to test with: the vendored emoji on noise, four of them and two photographs in each split."""

from pathlib import Path

import pytest
from pictures import EMOJI, fluent, noise

from mcbeit.prepare import emoji_art, scenes
from mcbeit.prepare.credits import Credit
from mcbeit.prepare.photos import Photograph
from mcbeit.prepare.scenes import Material, divide

LICENCES = {"lake": "CC-BY-4.0", "wood": "CC0-1.0", "dune": "CC-BY-SA-4.0", "reef": "CC-BY-4.0"}


def few_scenes(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """So many scenes of each split, and a share of the vendored emoji that gives both splits some of them."""
    monkeypatch.setattr(scenes, "NUM_SCENES", counts)
    monkeypatch.setattr(emoji_art, "VALIDATION_SHARE", 0.3)


def make_material() -> Material:
    backgrounds = {
        "train": {name: noise(seed, 400) for seed, name in enumerate(("lake", "wood"))},
        "val": {name: noise(seed, 400) for seed, name in enumerate(("dune", "reef"), start=2)},
    }
    photographs = [Photograph(name, Path(f"{name}.jpg"), Credit("Lapo", licence)) for name, licence in LICENCES.items()]
    return Material(divide(EMOJI, fluent()), backgrounds, photographs, [], "| fluent | ... |\n")
