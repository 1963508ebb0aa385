"""Indices of tar files that took long to read, kept in the user's cache folder: $XDG_CACHE_HOME or ~/.cache.

An index belongs to a file of this location, size and time of change; of another one it is never used. Everything there
may be removed at any time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from mcbeit.sources import location
from mcbeit.sources.location import Stamp
from mcbeit.sources.tar_index import Shard

FORM = 1  # of the files; another one is another key
WORTH_KEEPING = 1000  # images in a local file; of a URL every index is


def recall(name: str, stamp: Stamp, suffixes: frozenset[str]) -> Shard | None:
    """The index of a file, if one was kept and the file is still the same."""
    try:
        values = json.loads(_path(name, stamp, suffixes).read_text(encoding="utf-8", errors="surrogateescape"))
        return Shard(**{**values, "name": name, "stamp": stamp, "passed_over": Counter(values["passed_over"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(shard: Shard, suffixes: frozenset[str]) -> None:
    """Write the index of a whole file, if that is worth it; where nothing can be written, nothing is."""
    is_slow = location.is_url(shard.name) or len(shard.names) >= WORTH_KEEPING
    if shard.reason is not None or shard.stamp.changed == 0 or not is_slow:
        return
    path = _path(shard.name, shard.stamp, suffixes)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - it is open
            json.dump(vars(shard), file)
        Path(temporary).replace(path)


def _path(name: str, stamp: Stamp, suffixes: frozenset[str]) -> Path:
    place = name if location.is_url(name) else os.path.abspath(name)  # noqa: PTH100
    key = json.dumps([FORM, place, *stamp, sorted(suffixes)])
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(root, "mcbeit", "tar", hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest() + ".json")
