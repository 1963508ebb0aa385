"""Images that cannot be read: listed with the reason, and counted, as too many of them stop a run."""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from mcbeit.atomic import write_bytes
from mcbeit.data import Corrupt
from mcbeit.errors import DataError, ImageError
from mcbeit.multichannel import decode_image
from mcbeit.sources import ImageSource


class CorruptImages:
    """The unreadable images of a run: each is listed once in `path`; too many of them stop the run.

    Damaged shards are listed too, and count for the images that they have lost. Images that are listed already, by a
    run that resumes, are read again: some may have been mended since. Raises DataError if there are too many already.
    """

    def __init__(self, source: ImageSource, path: Path, *, max_fraction: float) -> None:
        self.source, self.path, self.max_fraction = source, path, max_fraction
        self._names: set[str] = set()
        self._num_lost = sum(damage.num_lost for damage in source.damaged)
        if path.exists():
            listed = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
            known = {name: line for line in listed if (name := line.partition("\t")[0])}
            self._names = {name for name, index in _find(source, known) if not is_readable(source, index)}
            text = "".join(f"{line}\n" for name, line in known.items() if name in self._names)
            write_bytes(path, text.encode(errors="surrogateescape"))
        if source.damaged:
            self._list({damage.name: damage.reason for damage in source.damaged})
            self._check(source.damaged[-1].name)

    def __len__(self) -> int:
        return len(self._names) + self._num_lost

    def describe(self) -> str:
        """How many images cannot be read, and where to look."""
        return f"{self._share()} cannot be read; {self.path} lists them"

    def add(self, corrupt: Sequence[Corrupt]) -> None:
        """Record what batches report. Raises DataError above the allowed fraction."""
        fresh = {self.source.name(bad.image): bad.reason for bad in corrupt}
        fresh = {name: reason for name, reason in fresh.items() if name not in self._names}
        if fresh:
            self._record(fresh)

    def _record(self, fresh: dict[str, str]) -> None:
        self._names.update(fresh)
        self._list(fresh)
        self._check(next(reversed(fresh)))

    def _list(self, reasons: dict[str, str]) -> None:
        with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in reasons.items())

    def _check(self, last: str) -> None:
        if len(self) > self.max_fraction * (len(self.source) + self._num_lost):
            raise DataError(
                f"{self._share()} cannot be read, more than data.max_corrupt_fraction={self.max_fraction:g} allows; "
                f"the list with reasons is {self.path}, the last one is '{last}'. Mend these files or allow a larger "
                "fraction, and go on with --resume; or remove them and start another run"
            )

    def _share(self) -> str:
        about = "about " * bool(self._num_lost)
        return f"{about}{len(self)} of {len(self.source) + self._num_lost} images"


def _find(source: ImageSource, names: Container[str]) -> Iterator[tuple[str, int]]:
    """The images of a source that have some of the names."""
    for index in range(len(source)):
        if (name := source.name(index)) in names:
            yield name, index


def is_readable(source: ImageSource, index: int) -> bool:
    """Whether an image can be read and decoded."""
    try:
        decode_image(source.read(index), source.channels)
    except (ImageError, OSError):
        return False
    return True
