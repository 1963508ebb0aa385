"""The images to draw: files, and images below folders, as the model sees them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mcbeit.encoder import EncoderSpec
from mcbeit.errors import PictureError
from mcbeit.multichannel import false_colours
from mcbeit.sources import open_folder

Pixels = UInt8[np.ndarray, "height width 3"]


class Shown(NamedTuple):
    """An image as the model sees it: resized, cropped, and of other than three channels in false colours."""

    path: str
    pixels: Pixels

    @property
    def name(self) -> str:
        """The name of the file, in UTF-8."""
        return os.fsencode(Path(self.path).name).decode(errors="replace")


def find_images(places: Sequence[str], *, channels: int = 3) -> list[str]:
    """The files, and those below folders.

    Raises PictureError if a place is not there, DataError for a folder without images.
    """
    found: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            source = open_folder(path, channels=channels)
            found += [source.name(index) for index in range(len(source))]
        elif path.is_file():
            found.append(str(path))
        else:
            raise PictureError(f"there is no image or folder '{place}'")
    if not found:
        raise PictureError("name images or folders of images to draw")
    return found


def spread(images: Sequence[str], limit: int) -> list[str]:
    """At most so many of the images, the first one among them, evenly spread."""
    if len(images) <= limit:
        return list(images)
    return [images[int(index)] for index in np.linspace(0, len(images) - 1, limit).round()]


def show(path: str, spec: EncoderSpec) -> Shown:
    """The image as an encoder sees it. Raises ImageError if it cannot be read."""
    return Shown(path, false_colours(spec.preprocess.pixels(path)))
