"""What a task is, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from mcbeit.bench.data import SPLITS, BenchData, DataKind
from mcbeit.bench.features import Features
from mcbeit.bench.manifest import Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Answers, Curve, Grid, Metric, Preset
from mcbeit.config import Config, Seed

Needs = Literal["embedding", "weights"]
MAX_CONFUSED = 100  # classes: a larger table nobody reads


class TaskConfig(Config):
    """The settings that every task has."""

    seed: Seed = 0

    @property
    def needs_weights(self) -> str | None:
        """Where these settings need weights and the task itself needs none: the setting that does without them."""
        return None

    def described(self) -> dict[str, Any]:
        """Every setting, as results keep them, with what lies in files that they name."""
        return self.model_dump(mode="json")

    def other_images(self, data: BenchData) -> dict[str, BenchData]:
        """The sets of images that are measured beside `data`, by the names that results give them."""
        return {}


@dataclass
class Outcome:
    """What a task has measured; see `Result` for what the parts mean."""

    primary: str
    metrics: dict[str, Metric]
    used: dict[str, Used]  # by split
    per_class: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    curves: tuple[Curve, ...] = ()
    grids: tuple[Grid, ...] = ()
    answers: Answers | None = None
    remarks: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)  # neighbours, as the report draws them

    def note_features(self, **splits: Features) -> None:
        """Keep which images were used, and how long their vectors took."""
        different = {one.path: one for one in splits.values()}  # one set may be queries and gallery
        made = [one for one in different.values() if one.seconds]
        self.used = {name: one.used for name, one in splits.items()}
        self.seconds["features"] = sum(one.seconds for one in made)
        if made and len(made) == len(different):
            self.images_per_second = sum(len(one.vectors) for one in made) / self.seconds["features"]


@dataclass(frozen=True)
class BenchTask:
    """A task: what it is, what it needs, and the function that measures."""

    name: str
    version: int  # of the protocol; a change that may change numbers raises it
    title: str
    needs: Needs
    images: DataKind  # what has to be known of them
    config: type[TaskConfig]
    presets: dict[Preset, dict[str, Any]]  # what each sets of the config
    run: Callable[[BenchModel, BenchData, Any], Outcome]

    @property
    def splits(self) -> tuple[str, str]:
        """The names of the sets of images that it is measured on."""
        return SPLITS[self.images]
