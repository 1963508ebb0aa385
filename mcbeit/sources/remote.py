"""Files behind URLs, by fsspec: s3://, gs://, https://, memory://, zip://folder::archive.zip and their like."""

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcbeit.errors import DataError

DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
DRIVERS |= {"abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko"}

_SIGNS = ("etag", "md5", "crc", "digest", "modified", "mtime", "created")  # of an upload, in what a storage tells


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    files, path = _connect(url)
    with _listing(url):
        return bool(files.exists(path))


def is_folder(url: str) -> bool:
    """Whether it is there and holds files."""
    files, path = _connect(url)
    with _listing(url):
        return bool(files.isdir(path))


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The file, or a part of it. Raises OSError."""
    files, path = _connect(url)
    with _os_errors(url):
        return bytes(files.cat_file(path, start=start, end=end))


def size_and_version(url: str) -> tuple[int, int]:
    """Bytes, and a hash of what tells that a file has changed; 0 if its storage does not tell. Raises OSError."""
    files, path = _connect(url)
    with _os_errors(url):
        info = files.info(path)
    told = {key: str(value) for key, value in info.items() if any(sign in key.lower() for sign in _SIGNS)}
    version = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()[:7] if told else b""
    return int(info["size"]), int.from_bytes(version, "big")


def open_file(url: str) -> io.IOBase:
    """The file for reading from anywhere in it. Raises OSError."""
    files, path = _connect(url)
    with _os_errors(url):
        return files.open(path, "rb")


def walk(root: str) -> Iterator[str]:
    """The relative paths of all files below a folder, in the order of `location.walk`; hidden folders are left out."""
    files, path = _connect(root)
    base = path.rstrip("/") + "/" if path.rstrip("/") else ""
    with _listing(root):
        found = [name.removeprefix(base).lstrip("/").split("/") for name in files.find(path)]
    shown = [parts for parts in found if not any(folder.startswith(".") for folder in parts[:-1])]
    for parts in sorted(shown, key=lambda parts: [*((True, folder) for folder in parts[:-1]), (False, parts[-1])]):
        yield "/".join(parts)


def names(folder: str) -> list[str]:
    """The names of what lies directly in a folder."""
    files, path = _connect(folder)
    with _listing(folder):
        return [name.rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False)]


def match(pattern: str) -> list[str]:
    """The URLs that match, sorted. Raises DataError for a chain of URLs, which has no place for a pattern."""
    if "::" in pattern:
        raise DataError(f"'{pattern}' is a pattern in a chain of URLs; name the folder, or each file")
    files, path = _connect(pattern)
    with _listing(pattern):
        return sorted(files.unstrip_protocol(name) for name in files.glob(path))


def join(root: str, path: str) -> str:
    """The URL of a file below a folder; of a chain, the folder is in the first link."""
    link, rest = _first_link(root)
    return (link if link.endswith("/") else f"{link}/") + path + rest


def base_name(url: str) -> str:
    """The last part of its path."""
    return _first_link(url)[0].rstrip("/").rpartition("/")[2]


def parent(url: str) -> str:
    """The folder that holds a file."""
    link, rest = _first_link(url)
    folder = link.rpartition("/")[0]
    return (f"{folder}/" if folder.endswith(("/", ":")) else folder) + rest


@contextmanager
def _os_errors(url: str) -> Iterator[None]:
    """Each driver has errors of its own; here they are all OSErrors."""
    try:
        yield
    except (OSError, DataError):
        raise
    except Exception as error:
        raise OSError(f"'{url}' cannot be read: {error}") from error


@contextmanager
def _listing(url: str) -> Iterator[None]:
    """Images of a folder that cannot be listed would be missing without a word."""
    try:
        with _os_errors(url):
            yield
    except OSError as error:
        raise DataError(
            f"the files below '{url}' cannot be listed: {error}; check the URL and its permissions"
        ) from error


def _first_link(url: str) -> tuple[str, str]:
    """Of a chain such as zip://folder::s3://bucket/archive.zip: the link that holds the path, and what follows."""
    cut = url.find("::", url.index("://"))
    return (url, "") if cut < 0 else (url[:cut], url[cut:])


def _connect(url: str) -> tuple[Any, str]:
    return _connection(url, os.getpid())


@functools.lru_cache(maxsize=1024)
def _connection(url: str, process: int) -> tuple[Any, str]:
    """File system and path of a URL, made anew in a forked process: connections and event loops do not survive that.

    Raises DataError if fsspec does not know the protocol, or lacks the package for it.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        package = next((DRIVERS[name] for name in re.findall(r"(\w+)://", url) if name in DRIVERS), None)
        do = f"{package}: pip install {package}" if package else f"another package: {error}"
        raise DataError(f"reading '{url}' needs {do}") from error
    except ValueError as error:
        raise DataError(f"'{url}' is no URL that fsspec can open: {error}") from error
    except OSError as error:
        raise DataError(f"'{url}' cannot be opened: {error}") from error
