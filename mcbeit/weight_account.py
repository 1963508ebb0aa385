"""The account of a weights file: what became of every key. Nothing is passed over in silence."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mcbeit.errors import WeightsError

Fate = Literal["loaded", "converted", "resized", "ignored"]
FATES: tuple[Fate, ...] = ("loaded", "converted", "resized", "ignored")  # the later one stays if a key has several
NUM_NAMED = 8  # keys that an error names; the others it counts


class Entry(NamedTuple):
    """What became of one key. `rule` says how and why; a tensor that is only loaded needs none."""

    fate: Fate
    rule: str


@dataclass
class Account:
    """What became of the keys of a file, and what the model has that the file has not.

    `keys` are all tensors of the file; an account is complete when each of them has an entry.
    """

    origin: str
    keys: tuple[str, ...]
    entries: dict[str, Entry] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)  # parameter of the model that starts anew -> why
    owner: str = "a BEiT backbone"  # what the keys should be of

    def note(self, key: str, fate: Fate, rule: str = "") -> None:
        """Write down what became of a key; of two fates the one that changes more stays, both rules are kept."""
        old = self.entries.get(key, Entry(fate, ""))
        rules = dict.fromkeys(part for part in (*old.rule.split("; "), rule) if part)
        self.entries[key] = Entry(max(old.fate, fate, key=FATES.index), "; ".join(rules))

    def counts(self) -> dict[str, int]:
        """How many keys had each fate."""
        found = Counter(entry.fate for entry in self.entries.values())
        return {fate: found[fate] for fate in FATES}

    def by_rule(self) -> dict[Entry, list[str]]:
        """The keys of each fate and rule so far, in the order of FATES and of the file."""
        groups: dict[Entry, list[str]] = {}
        for key in (key for key in self.keys if key in self.entries):
            groups.setdefault(self.entries[key], []).append(key)
        return dict(sorted(groups.items(), key=lambda item: FATES.index(item[0].fate)))

    def refuse(self, unknown: Iterable[str]) -> None:
        """Raises WeightsError that names keys which no rule knows, if there are any."""
        if names := list(unknown):
            raise WeightsError(
                f"'{self.origin}' holds {count(names, 'key')} that {self.owner} does not have: {some(names)}. "
                "Nothing was loaded; take them out of the file if they are not part of the model"
            )

    def check_complete(self) -> None:
        """Raises WeightsError with every key that has no entry."""
        self.refuse(key for key in self.keys if key not in self.entries)

    def summary(self) -> str:
        """One line: how many keys had each fate, and what starts anew."""
        parts = [f"{number} {fate}" for fate, number in self.counts().items() if number]
        fresh = f"; starts anew: {some(self.fresh)}" if self.fresh else ""
        return f"{len(self.keys)} keys: {', '.join(parts)}{fresh}"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        keys = {key: {"fate": self.entries[key].fate, "rule": self.entries[key].rule} for key in self.keys}
        return {"counts": self.counts(), "keys": keys, "fresh": dict(self.fresh)}


def count(names: Sequence[str], word: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{len(names)} {word}{'s' * (len(names) != 1)}"


def some(keys: Iterable[str]) -> str:
    """The first keys by name, the others by their number."""
    names = list(keys)
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest
