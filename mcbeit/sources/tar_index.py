"""Where the images of a tar file are in it, by reading its headers alone.

WebDataset's rules: members that follow each other and have the same path up to the first dot of their last part are one
sample; its label is an integer or a text in `.cls`, or `label` in `.json`.
"""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from mcbeit.sources import location
from mcbeit.sources.files import suffix_of
from mcbeit.sources.location import Stamp

MAX_JSON = 2**20  # bytes of a sample's description that are looked into for a label

_INTEGER = re.compile(r"-?\d+", re.ASCII)


@dataclass
class Shard:
    """One tar file: its images in order. `reason` says why it could not be read to its end."""

    name: str
    stamp: Stamp
    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # bytes from the beginning of the file
    sizes: list[int] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    reason: str | None = None

    def add(self, image: "Member", label: int | str | None) -> None:
        """Note one more image."""
        self.names.append(image.name)
        self.starts.append(image.start)
        self.sizes.append(image.size)
        self.labels.append(label)

    def drop_last(self) -> None:
        """Forget the last image."""
        for values in (self.names, self.starts, self.sizes, self.labels):
            values.pop()


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    start: int
    size: int

    @property
    def key(self) -> str:
        """What the members of one sample share."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + (name.partition(".")[0] or name)

    @property
    def extension(self) -> str:
        """What follows the key, in small letters: .jpg, .cls, .seg.png."""
        return self.name[len(self.key) :].lower()


def read_index(name: str, stamp: Stamp, suffixes: frozenset[str]) -> Shard:
    """Read the headers of a tar file that is there; trouble is the shard's `reason`."""
    shard = Shard(name, stamp)
    try:
        with location.open_file(name) as file:
            for _, sample in groupby(_members(file, shard), key=lambda member: member.key):
                _add(shard, file, list(sample), suffixes)
    except OSError as error:
        shard.reason = reason_of(error)
    return shard


def read_class_tars(name: str, stamp: Stamp, suffixes: frozenset[str]) -> Shard:
    """The same of a tar file of tar files, one per class and called as it, as ImageNet's are; nothing is unpacked."""
    shard, broken = Shard(name, stamp), list[str]()
    try:
        with location.open_file(name) as file, location.open_file(name) as inside:
            for tar in _members(file, shard):
                if suffix_of(tar.name) != ".tar":
                    shard.passed_over[suffix_of(tar.name)] += 1
                elif (reason := _add_class(shard, inside, tar, suffixes)) is not None:
                    broken.append(f"in '{tar.name}', {reason}")
        shard.reason = shard.reason or next(iter(broken), None)
    except OSError as error:
        shard.reason = reason_of(error)
    return shard


def _add_class(shard: Shard, file: io.IOBase, tar: Member, suffixes: frozenset[str]) -> str | None:
    """Note the images of a tar file within `file`, up to what is wrong with it, which is returned."""
    name = tar.name.rpartition("/")[2].removesuffix(".tar")
    inner = Shard(name, Stamp(tar.start + tar.size, 0))
    file.seek(tar.start)
    for member in _members(file, inner):
        if suffix_of(member.name) in suffixes:
            shard.add(member._replace(name=f"{name}/{member.name}"), name)
        else:
            inner.passed_over[suffix_of(member.name)] += 1
    shard.passed_over += inner.passed_over
    return inner.reason


def _members(file: io.IOBase, shard: Shard) -> Iterator[Member]:
    """The regular files of a tar file that begins where `file` is, in order; what ends it early is `shard.reason`."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # they would pile up, and typeshed does not know it
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        shard.passed_over["links and the like"] += 1
                    continue
                if member.offset_data + member.size > shard.stamp.size:
                    shard.reason = f"it ends at byte {shard.stamp.size}, within '{member.name}'"
                    return
                yield Member(member.name, member.offset_data, member.size)
            shard.reason = _wrong_end(file, tar.offset)
    except OSError:
        raise
    except tarfile.ReadError as error:
        shard.reason = f"no plain tar file, or truncated: {error}"
    except Exception as error:  # tarfile may fail in any way on bytes from anywhere
        shard.reason = f"a header is corrupt: {error}"


def _wrong_end(file: io.IOBase, end: int) -> str | None:
    """What is wrong where the headers end: zeros have to follow. For tarfile a broken header is an end like any."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return f"it ends at byte {end} without the mark of an end, so members may be missing"
    return f"the header at byte {end} is corrupt" if block.strip(b"\0") else None


def _add(shard: Shard, file: io.IOBase, sample: Sequence[Member], suffixes: frozenset[str]) -> None:
    """Note the image of a sample: the first with nothing but a suffix after its key, or, without one, every image."""
    images = [member for member in sample if suffix_of(member.name) in suffixes]
    plain = [member for member in images if member.extension in suffixes]
    chosen = plain[:1] or images
    for member in sample:
        if member not in chosen and member.extension not in (".cls", ".json"):
            shard.passed_over["further images of a sample" if member in images else suffix_of(member.name)] += 1
    if chosen:
        label = _label(file, {member.extension: member for member in sample})
        for member in chosen:
            shard.add(member, label)


def _label(file: io.IOBase, members: dict[str, Member]) -> int | str | None:
    """What a sample says about its class, if it does."""
    if (member := members.get(".cls")) is not None:
        return _as_label(_read(file, member).decode(errors="replace").strip() or None)
    if (member := members.get(".json")) is not None and member.size <= MAX_JSON:
        try:
            described = json.loads(_read(file, member))
        except ValueError:
            return None
        return _as_label(described.get("label")) if isinstance(described, dict) else None
    return None


def _as_label(value: object) -> int | str | None:
    if isinstance(value, str):
        return int(value) if _INTEGER.fullmatch(value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read(file: io.IOBase, member: Member) -> bytes:
    file.seek(member.start)
    return file.read(member.size)


def reason_of(error: OSError) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error.strerror or error).split())
