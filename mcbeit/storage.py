"""Where a run is kept: a folder, or an object store behind a URI of which a local copy is kept in step.

`run=s3://bucket/runs/name` works on a temporary folder; what is there is fetched at the start, and after every
checkpoint what has changed is sent, manifests last, so that a checkpoint is there when all of it is. The URIs are those
of pyarrow: s3://, gs://, hdfs://, with options such as ?region=... or ?endpoint_override=... behind them.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mcbeit.errors import McbeitError, RunError

LAST = "manifest.json"  # tells that all files beside it are there


def is_remote(location: str) -> bool:
    """Whether it is a URI, and no path."""
    return "://" in location


class Place:
    """A folder that is used as it is. Its name for people is its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def named(self, text: str) -> str:
        """The text with the names that people know."""
        return text

    def push(self) -> None:
        """Keep what is in the folder; here it is kept already."""

    def pull(self, below: str = "") -> None:
        """Bring the folder up to date with what is kept below a name; here it is."""


class RemotePlace(Place):
    """A local folder in step with the files below a URI."""

    def __init__(self, uri: str, path: Path) -> None:
        super().__init__(path)
        self.uri = uri.rstrip("/")
        self._files, self._root = _open(uri)
        self._known: dict[str, tuple[int, int]] = {}  # size and time of change of what is there and here alike

    def named(self, text: str) -> str:
        """The text with the URI in the place of the local folder."""
        base = self.uri.partition("?")[0]
        return text.replace(f"{self.path}/", f"{base}/").replace(str(self.path), self.uri)

    def pull(self, below: str = "") -> None:
        """Fetch every file that is not here."""
        with _reaching(self.uri):
            for name in self._there():
                target = self.path / name
                if target.exists() or not name.startswith(below):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(f"{self._root}/{name}") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                self._known[name] = _state(target)

    def push(self) -> None:
        """Send what has changed, manifests after the files that they name; remove what has gone here."""
        found = {str(path.relative_to(self.path)): _state(path) for path in _files_below(self.path)}
        changed = [name for name, state in found.items() if self._known.get(name) != state]
        with _reaching(self.uri):
            for name in sorted(changed, key=lambda name: (name.endswith(LAST), name)):
                self._send(name)
                self._known[name] = found[name]
            for name in sorted(self._known.keys() - found.keys(), key=lambda name: not name.endswith(LAST)):
                self._files.delete_file(f"{self._root}/{name}")
                del self._known[name]

    def _send(self, name: str) -> None:
        target = f"{self._root}/{name}"
        if self._files.type_name in ("local", "hdfs"):  # object stores have no folders
            self._files.create_dir(target.rpartition("/")[0], recursive=True)
        with (self.path / name).open("rb") as file, self._files.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream)

    def _there(self) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._root, recursive=True, allow_not_found=True)
        found = [info.path for info in self._files.get_file_info(selector) if info.type == FileType.File]
        return sorted(path.removeprefix(f"{self._root}/") for path in found)


@contextmanager
def place_of(location: str) -> Iterator[Place]:
    """The place of a run, for as long as it is used; a URI begins with an empty folder, to be filled by `pull`.

    Errors that pass through name the URI, not the local copy. Raises RunError if the URI is none.
    """
    if not is_remote(location):
        yield Place(Path(location))
        return
    with tempfile.TemporaryDirectory(prefix="mcbeit-run-") as folder:
        place = RemotePlace(location, Path(folder))
        try:
            yield place
        except McbeitError as error:
            with suppress(McbeitError):
                place.push()  # what was measured up to here
            error.args = tuple(place.named(str(argument)) for argument in error.args)
            raise


def _open(uri: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise RunError(f"'{uri}' needs pyarrow; pip install 'mcbeit[data]', or choose a local folder") from error
    try:
        files, root = FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise RunError(f"'{uri}' is no place that pyarrow knows: {error}; use s3://, gs://, or a folder") from error
    return files, root.rstrip("/")


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the storage '{uri}' cannot be used: {' '.join(str(error).split())}; check its address, the credentials "
            "in the environment, and go on with --resume"
        ) from error


def _files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".partial")]


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
