"""Opening images that are searched for each other: the usual data sets in their layouts, and folders of one's own."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from mcbeit.bench.paired import EXPECTED as PAIRED
from mcbeit.bench.paired import open_paired
from mcbeit.bench.retrieval_set import RetrievalSet, by_class
from mcbeit.bench.revisited import EXPECTED as REVISITED
from mcbeit.bench.revisited import ground_truth_files, open_revisited
from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import ImageSource, location, open_source
from mcbeit.sources.files import open_named
from mcbeit.sources.labels import number_labels

__all__ = ["RetrievalKind", "RetrievalSet", "open_retrieval"]

RetrievalKind = Literal["auto", "revisited", "cub", "sop", "query-gallery", "single", "paired"]
CUB_FILES = ("images.txt", "image_class_labels.txt")
FIRST_CUB_CLASS = 101  # the test half is 101 to 200 (Song et al., 2016)
SOP_FILE = "Ebay_test.txt"
QUERIES, GALLERY = ("query", "queries"), "gallery"
SPLITS = {"train", "val", "valid", "validation", "test"}
SAME_CLASS = "same class"  # the one protocol where classes tell what is right


class Layout(NamedTuple):
    """What lies in a folder of this layout, and what opens it."""

    expected: str
    open: Callable[[str, int], RetrievalSet]


def open_retrieval(place: str, *, kind: RetrievalKind = "auto", channels: int = COLOURS) -> RetrievalSet:
    """Open a folder, or any labelled images, as queries and a gallery.

    `auto` knows the first four of LAYOUTS by their files; everywhere else each image is a query against all others.
    `paired` has to be asked for.
    Raises DataError, with what was expected and found, if no layout fits, if files are missing, or if no query has
    anything to find.
    """
    places = location.expand(place)
    folder = places[0] if len(places) == 1 else place
    found = LAYOUTS[_recognise(folder) if kind == "auto" else kind].open(folder, channels)
    if not any(relevance.num_relevant.any() for relevance in found.relevance.values()):
        raise DataError(f"nothing in the gallery of '{place}' is right for any of its {len(found.queries)} queries")
    return found


def _recognise(folder: str) -> RetrievalKind:
    if not location.is_folder(folder):
        return "single"
    names = set(location.names(folder))
    if ground_truth_files(folder):
        return "revisited"
    if CUB_FILES[1] in names:
        return "cub"
    if SOP_FILE in names:
        return "sop"
    return "query-gallery" if names & {*QUERIES, GALLERY} else "single"


def _open_revisited(folder: str, channels: int) -> RetrievalSet:
    if channels != COLOURS:
        raise DataError(f"'{folder}' is revisited Oxford or Paris, which has images of 3 channels, not {channels}")
    return open_revisited(folder)


def _open_cub(folder: str, channels: int) -> RetrievalSet:
    _check_files(folder, "cub", CUB_FILES)
    images, labels = (location.join(folder, name) for name in CUB_FILES)
    paths = dict(_rows(images, 2))
    chosen = [image for image, label in _rows(labels, 2) if _number(label, labels) >= FIRST_CUB_CLASS]
    if unknown := [image for image in chosen if image not in paths]:
        raise DataError(f"'{labels}' has a class for image {unknown[0]}, which is not in '{images}'")
    found = [paths[image] for image in chosen]
    root = location.join(folder, "images")
    return _open_single("cub", root, found, [path.partition("/")[0] for path in found], labels, channels)


def _open_sop(folder: str, channels: int) -> RetrievalSet:
    _check_files(folder, "sop", [SOP_FILE])
    where = location.join(folder, SOP_FILE)
    rows = _rows(where, 4)[1:]  # the first names the columns
    return _open_single("sop", folder, [row[3] for row in rows], [row[1] for row in rows], where, channels)


def _open_single(
    layout: str, root: str, paths: Sequence[str], classes: Sequence[str], where: str, channels: int
) -> RetrievalSet:
    """Files of which each is a query, as the file `where` names them."""
    if not paths:
        raise DataError(f"'{where}' names no image of the test classes; {_expected(layout)}")
    numbered = number_labels(classes, where)
    source = open_named(root, paths, numbered.labels, numbered.classes, where=where, channels=channels)
    return _all_against_all(source, layout)


def _open_query_gallery(folder: str, channels: int) -> RetrievalSet:
    queries = [name for name in QUERIES if name in location.names(folder)]
    _check_files(folder, "query-gallery", [*(queries or QUERIES[:1]), GALLERY])
    sources = [_labelled(location.join(folder, name), channels) for name in (queries[0], GALLERY)]
    return RetrievalSet(sources[0], sources[1], {SAME_CLASS: by_class(*sources)}, "query-gallery")


def _open_labelled(place: str, channels: int) -> RetrievalSet:
    source = _labelled(place, channels)
    if SPLITS.issuperset(source.classes):
        split = location.join(place, source.classes[-1])
        raise DataError(f"'{place}' holds the splits {', '.join(source.classes)}; name one of them, such as '{split}'")
    if len(source.classes) < 2:
        raise DataError(
            f"all images of '{place}' have one class, '{source.classes[0]}', so every answer would be right; "
            f"{_expected()}"
        )
    return _all_against_all(source, "single")


def _all_against_all(source: ImageSource, layout: str) -> RetrievalSet:
    return RetrievalSet(source, source, {SAME_CLASS: by_class(source, source)}, layout)


def _labelled(place: str, channels: int) -> ImageSource:
    source = open_source(place, folders="imagefolder", channels=channels)
    if source.labels is None:
        raise DataError(f"the images of '{place}' have no labels, which tell what is right; {_expected()}")
    return source


def _check_files(folder: str, layout: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not location.exists(location.join(folder, name))]
    if missing:
        raise DataError(f"'{folder}' has no {missing[0]}: {_expected(layout)}; {location.describe(folder)}")


def _rows(file: str, num_columns: int) -> list[list[str]]:
    """The columns of each line, apart by spaces. Raises DataError if a line has fewer."""
    rows = [
        line.split(maxsplit=num_columns - 1) for line in location.read_bytes(file).decode(errors="replace").splitlines()
    ]
    wrong = next((number for number, row in enumerate(rows) if len(row) < num_columns), None)
    if wrong is not None:
        raise DataError(f"line {wrong + 1} of '{file}' has {len(rows[wrong])} columns, not {num_columns}")
    return rows


def _number(text: str, file: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"'{file}' has the class '{text}', which is no number")
    return int(text)


def _expected(layout: str | None = None) -> str:
    """What would be read."""
    if layout is not None:
        return f"expected {LAYOUTS[layout].expected}"
    return "expected one of: " + "; ".join(f"{name}: {one.expected}" for name, one in LAYOUTS.items())


LAYOUTS = {
    "revisited": Layout(REVISITED, _open_revisited),
    "cub": Layout("CUB-200-2011 with images.txt, image_class_labels.txt and images/", _open_cub),
    "sop": Layout("Stanford Online Products with Ebay_test.txt beside the folders that it names", _open_sop),
    "query-gallery": Layout("query/ID/IMAGE (or queries/) and gallery/ID/IMAGE", _open_query_gallery),
    "single": Layout("CLASS/IMAGE, or other labelled images, of two classes or more", _open_labelled),
    "paired": Layout(PAIRED, open_paired),
}
