"""Which class each image of ImageNet's validation set has: they all lie in one folder or tar file."""

import csv
import io
import tarfile
from typing import Any

from mcbeit.errors import DataError
from mcbeit.sources import location

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"

ClassNames = dict[str, str]  # WordNet ids, such as n01440764, by the name of the image without its suffix


def read_devkit(path: str) -> ClassNames:
    """What the development kit says, a folder or a tar file: the n-th line is the class of image n.

    Its numbers of classes are in an order of its own, which only its `meta.mat` tells. Raises DataError if one of the
    two files is missing or damaged, or without scipy.
    """
    files = _folder_files(path) if location.is_folder(path) else _tar_files(path)
    missing = [name for name in (GROUND_TRUTH, META) if name not in files]
    if missing:
        raise DataError(f"the devkit '{path}' has no {missing[0]}; download it again")
    wnids = _read_meta(files[META], path)
    lines = files[GROUND_TRUTH].decode(errors="replace").split()
    unknown = [line for line in lines if line not in wnids]
    if unknown or not lines:
        raise DataError(
            f"{GROUND_TRUTH} of '{path}' does not fit its {META}: "
            + (f"there is no class {unknown[0]:.20}" if unknown else "it is empty")
        )
    return {f"ILSVRC2012_val_{number:08}": wnids[line] for number, line in enumerate(lines, 1)}


def read_solution(path: str) -> ClassNames:
    """What Kaggle's `LOC_val_solution.csv` says: the class is the first word of the second column.

    Raises DataError if it has another form.
    """
    rows = list(csv.reader(io.StringIO(location.read_bytes(path).decode("utf-8-sig", errors="replace"))))
    if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
        raise DataError(f"'{path}' does not begin with the line ImageId,PredictionString")
    wrong = next((number for number, row in enumerate(rows[1:], 2) if len(row) < 2 or not row[1].split()), None)
    if wrong is not None:
        raise DataError(f"line {wrong} of '{path}' names no class: {','.join(rows[wrong - 1]):.100}")
    return {row[0]: row[1].split()[0] for row in rows[1:]}


def _folder_files(path: str) -> dict[str, bytes]:
    """The two files of an unpacked devkit: they are in its folder `data`."""
    places = {name: location.join(path, f"data/{name}") for name in (GROUND_TRUTH, META)}
    return {name: location.read_bytes(place) for name, place in places.items() if location.exists(place)}


def _tar_files(path: str) -> dict[str, bytes]:
    """The two files of a packed devkit."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(location.read_bytes(path))) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in (GROUND_TRUTH, META) and (file := tar.extractfile(member)) is not None:
                    found[name] = file.read()
    except Exception as error:  # tarfile and the decompressors may fail in any way on bytes from anywhere
        raise DataError(f"the devkit '{path}' cannot be read: {error}; download it again") from error
    return found


def _read_meta(content: bytes, path: str) -> dict[str, str]:
    """WordNet ids by number. Only leaves are classes of images; the synsets above them have children."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"reading {META} of the devkit '{path}' needs scipy: pip install scipy") from error
    try:
        synsets: Any = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"].reshape(-1)
        leaves = [row for row in synsets if row["num_children"] == 0]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in leaves}
    except Exception as error:  # scipy may fail in any way on bytes from anywhere
        raise DataError(f"{META} of the devkit '{path}' cannot be read: {error}; download it again") from error
