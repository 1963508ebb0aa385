"""Who made a file, and under which licence: read from the machine-readable `copyright` file of a Debian package."""

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

LICENCE_LINKS = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "GPL-2+": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
    "MIT": "https://opensource.org/license/mit",
    "OFL-1.1": "https://openfontlicense.org/",
}


class Credit(NamedTuple):
    """The holder as the licence wants it named, and the licence's short name."""

    holder: str
    licence: str

    @property
    def licence_text(self) -> str:
        """The licence's name with a link where one is known."""
        link = LICENCE_LINKS.get(self.licence)
        return f"[{self.licence}]({link})" if link else self.licence


def credit_of(copyright_text: str, path: str) -> Credit | None:
    """The credit of one file, `path` being its place in the package's source; None if no entry names it.

    As the format wants it, the last entry that matches counts.
    """
    credit = None
    for stanza in re.split(r"\n\s*\n", copyright_text):
        fields = _fields(stanza)
        if any(fnmatchcase(path, pattern) for pattern in fields.get("Files", "").split()):
            licence = (fields.get("License") or "not stated").splitlines()[0].strip()
            credit = Credit(_one_line(fields.get("Copyright", "not stated")), licence)
    return credit


def _fields(stanza: str) -> dict[str, str]:
    """`Name: value` lines, a value going on over lines that begin with a space."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1].isspace():
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _one_line(holders: str) -> str:
    """The holders without their mail addresses."""
    lines = (re.sub(r"\s*<[^>]*>[^\w\s]*", "", line).strip() for line in holders.splitlines())
    return "; ".join(line for line in lines if line)
