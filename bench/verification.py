"""Are results what they were when they were measured, and are their images still the same?"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mcbeit.bench.data import BenchData, forget_opened
from mcbeit.bench.manifest import Manifest, joined_manifest, make_manifest
from mcbeit.bench.result import SUFFIX, Result, read_result
from mcbeit.bench.tasks import TASKS
from mcbeit.errors import BenchError, DataError
from mcbeit.file_hash import file_hash


class Finding(NamedTuple):
    """What was looked at, and what was seen."""

    name: str
    text: str
    is_wrong: bool

    def __str__(self) -> str:
        return f"{'WRONG' if self.is_wrong else 'ok'}  {self.name}: {self.text}"


def verify_folder(folder: Path) -> list[Finding]:
    """Look at every result of a folder. Raises BenchError if there are none."""
    paths = sorted((folder / "results").glob(f"*{SUFFIX}"))
    if not paths:
        raise BenchError(f"'{folder}' holds no results; make some: mcbeit bench run ... -o {folder}")
    forget_opened()
    seen: dict[tuple[BenchData, str], Manifest | str] = {}
    return [finding for path in paths for finding in _verify(path, seen)]


def _verify(path: Path, seen: dict[tuple[BenchData, str], Manifest | str]) -> Iterator[Finding]:
    try:
        result = read_result(path)
    except BenchError as error:
        yield Finding(path.name, str(error), True)
        return
    if result.run_id != path.stem:
        yield Finding(path.name, "its task, model or images were changed after it was measured", True)
        return
    current = TASKS.get(result.task.name)
    if current is not None and current.version != result.task.version:
        versions = f"{result.task.version}, now {current.version}"
        yield Finding(path.name, f"measured by version {versions} of the task; measure again to compare", False)
    for name, expected in result.artifacts.items():
        found = file_hash(path.parent / name) if (path.parent / name).is_file() else None
        if found != expected:
            yield Finding(
                path.name, f"'{name}' is {'not there' if found is None else 'another file than it was'}", True
            )
    yield from _verify_images(path, result, seen)


def _verify_images(path: Path, result: Result, seen: dict[tuple[BenchData, str], Manifest | str]) -> Iterator[Finding]:
    places = _places(result)
    for name, split in result.data.splits.items():
        data = places.get(name)
        if data is None:
            why = f"{result.task.name}, as it is now, does not tell where they are"
            yield Finding(path.name, f"its images ({name}) cannot be looked at: {why}", False)
            continue
        if (data, name) not in seen:
            seen[data, name] = _look(data, name)
        found = seen[data, name]
        if isinstance(found, str):
            yield Finding(path.name, f"its images ({name}) cannot be looked at: {found}", False)
        elif found != split.manifest:
            yield Finding(path.name, f"its images ({name}) at '{data.place}' are others now", True)
        else:
            yield Finding(path.name, f"unchanged, and so are its {split.manifest.num_images:,} images ({name})", False)


def _places(result: Result) -> dict[str, BenchData]:
    """Where the images of a result are, by split, as far as its task tells: another version has other settings."""
    task = TASKS.get(result.task.name)
    if task is None:
        return {}
    channels = result.model.spec.preprocess.channels
    own = BenchData(
        result.data.name, result.data.place, result.task.limit, result.data.seed, channels, kind=task.images
    )
    found = dict.fromkeys(task.splits, own)
    if task.version == result.task.version and result.data.splits.keys() - found.keys():
        found |= task.config.model_validate(result.task.protocol).other_images(own)
    return found


def _look(data: BenchData, split: str) -> Manifest | str:
    try:
        parts = data.shifted().parts if data.kind == "shifted" else (split,)
        return joined_manifest([make_manifest(data.open(part)) for part in parts])
    except DataError as error:
        return str(error)
