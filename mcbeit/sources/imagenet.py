"""Images to train on and to test on, of the same classes: ImageNet in all its layouts, and what is laid out alike."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.opening import how_to_make
from mcbeit.sources.source import ImageSource
from mcbeit.sources.split_layouts import LAYOUTS

LayoutKind = Literal["auto", "folders", "official", "kaggle", "lists", "webdataset", "parquet"]


class Splits(NamedTuple):
    """Two labelled sources whose classes have the same numbers."""

    train: ImageSource
    val: ImageSource
    layout: str


def open_splits(path: str | Path, *, kind: LayoutKind = "auto", channels: int = COLOURS) -> Splits:
    """Open a folder, or the URL of one, that holds both splits. `auto` takes the first layout all of which is there.

    Classes are numbered as in `train`: for ImageNet in the order of the sorted WordNet ids. Raises DataError, with what
    was expected and what was found, if no layout fits, if files of one are missing or do not match, or if `val` has a
    class that `train` has not.
    """
    root = str(path) if location.is_url(str(path)) else str(Path(path).expanduser())
    if not location.is_folder(root):
        what = "is a file: name the folder that holds it" if location.exists(root) else "is not there"
        raise DataError(f"'{path}' {what}{how_to_make(Path(root, 'train'))}")
    layouts = LAYOUTS if kind == "auto" else {kind: LAYOUTS[kind]}
    incomplete = []
    for name, layout in layouts.items():
        try:
            plan = layout.find(root)
        except DataError as error:
            incomplete.append(str(error))
            continue
        if plan is not None:
            val = plan.val(channels=channels)  # the smaller one first: its errors come sooner
            return _aligned(Splits(plan.train(channels=channels), val, name), root)
    if incomplete:
        raise DataError("; or ".join(incomplete))
    expected = "; ".join(f"{name}: {layout.expected}" for name, layout in layouts.items())
    raise DataError(
        f"'{root}' is not laid out as images to train and to test on: {location.describe(root)}; expected "
        f"one of: {expected}"
    )


def _aligned(splits: Splits, root: str) -> Splits:
    """The same with the numbers of `train` in `val`, which was opened for this alone and is changed."""
    train, val, layout = splits
    for source, split in ((train, "train"), (val, "val")):
        if source.labels is None:
            why = f" ({source.notes[0]})" if source.notes else ""
            raise DataError(f"the images of {split} in '{root}' ({layout}) have no labels{why}")
    number = {name: i for i, name in enumerate(train.classes)}
    if strange := [name for name in val.classes if name not in number]:
        damaged = f"; but '{train.damaged[0].name}' is damaged: {train.damaged[0].reason}" if train.damaged else ""
        raise DataError(
            f"{len(strange)} of {len(val.classes)} classes of val in '{root}' ({layout}) are not in train, such as "
            f"'{strange[0]}'; train has {len(number)}, such as '{train.classes[0]}'{damaged}"
        )
    val.labels, val.classes = np.array([number[name] for name in val.classes])[val.labels], train.classes
    return splits
