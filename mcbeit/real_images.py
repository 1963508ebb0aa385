"""Some real images to compare encoders on: of a source, or, without one, cut out of the photograph in matplotlib."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mcbeit.data import DataConfig
from mcbeit.errors import DataError, ImageError
from mcbeit.image_files import COLOURS, decode
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource

PHOTOGRAPH = "sample_data/grace_hopper.jpg"  # in the public domain; matplotlib comes with mcbeit
SEED = 0


def real_pixels(data: DataConfig | None, preprocess: Preprocess, count: int) -> tuple[np.ndarray, str]:
    """`count` images as the model takes them, and which they are.

    Images of a source lie evenly over it, unreadable ones are passed over. Raises DataError if it has too few that can
    be read, or if there is no source and the images are no colours.
    """
    if data is not None and data.source is not None:
        source = data.open()
        return _of_source(source, preprocess, count), f"{min(count, len(source))} images of {data.source}"
    if preprocess.channels != COLOURS:
        raise DataError(
            f"the model takes {preprocess.channels} channels; name some of its images to compare on: "
            "images.source=FOLDER"
        )
    crops = _crops(count)
    return np.stack([preprocess.pixels(crop) for crop in crops]), f"{count} crops of the photograph in matplotlib"


def _of_source(source: ImageSource, preprocess: Preprocess, count: int) -> np.ndarray:
    found: list[np.ndarray] = []
    for index in np.linspace(0, len(source) - 1, min(2 * count, len(source))).round().astype(int):
        try:
            found.append(preprocess.pixels(source.read(int(index))))
        except (ImageError, OSError):
            continue
    if len(found) < 2:
        raise DataError(f"only {len(found)} of the images can be read; name others: images.source=FOLDER")
    keep = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return np.stack([found[i] for i in keep])


def _crops(count: int) -> list[UInt8[np.ndarray, "height width 3"]]:
    import matplotlib

    image = decode(Path(matplotlib.get_data_path()) / PHOTOGRAPH)
    rng = np.random.default_rng(SEED)
    crops = []
    for _ in range(count):
        width, height = (int(rng.integers(side // 4, side)) for side in image.size)
        left, top = int(rng.integers(image.width - width)), int(rng.integers(image.height - height))
        crop: Image.Image = image.crop((left, top, left + width, top + height))
        crops.append(np.asarray(crop if rng.random() < 0.5 else crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    return crops
