"""Config: frozen pydantic models, read from a preset or a YAML file, with `key=value` overrides on top."""

import datetime
import difflib
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mcbeit.errors import ConfigError

ASSIGNMENT = re.compile(r"[a-z_]+(\.[a-z_]+)*=.*", re.DOTALL)
PRESETS = Path(__file__).parent / "presets"
Values = dict[str, Any]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]  # `~` is the home folder
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error: by default the last one silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if doubled := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.MarkedYAMLError(problem=f"key given twice: {', '.join(doubled)}", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class Config(BaseModel):
    """The base of every config section: immutable, unknown keys are errors, numbers finite, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def preset_names() -> list[str]:
    """The names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_values(source: str | Path) -> Values:
    """Read a preset by name, or a YAML file by path, into plain values.

    Raises ConfigError if there is no such preset or file, or if it is not a YAML mapping.
    """
    path = PRESETS / f"{source}.yaml"
    if not path.is_file():
        path = Path(source).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(str(source), preset_names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"'{source}' is neither a preset nor a file{hint}\npresets: {', '.join(preset_names())}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, found {type(values).__name__}")
    return values


def override(values: Values, assignments: Iterable[str]) -> Values:
    """Return `values` with each `dotted.key=value` applied; a value is read as YAML. `values` stays as it is."""
    result = dict(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"'{assignment}' is not of the form key=value, for example optim.lr=1e-3")
        try:
            value = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
            raise ConfigError(f"the value of {key} is not valid YAML: {text!r}; put text into quotes") from error
        *sections, leaf = key.split(".")
        section = result
        for name in sections:
            # A copy, not the section itself: a YAML anchor may have put the same one under two keys.
            section[name] = dict(section[name]) if isinstance(section.get(name), dict) else {}
            section = section[name]
        section[leaf] = value
    return result


def split_assignments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words of a command into names and `key=value` assignments; a file of such a name is a file."""
    assignments = [word for word in words if ASSIGNMENT.fullmatch(word) and not Path(word).exists()]
    return [word for word in words if word not in assignments], assignments


def validate(config_class: type[C], values: Values, *, origin: str = "config") -> C:
    """Build the config; raises one ConfigError that lists every mistake in `values`."""
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        lines = _explain(error, config_class)
        raise ConfigError("\n".join([f"{origin}: {len(lines)} mistake{'s' * (len(lines) > 1)}", *lines])) from None


def load(config_class: type[C], source: str | Path, assignments: Sequence[str] = ()) -> C:
    """Read, override and validate in one go."""
    return validate(config_class, override(read_values(source), assignments), origin=str(source))


def dump(config: Config) -> str:
    """The whole config as YAML, in the order of its definition; `load` of it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dotted_keys(config_class: type[Config], prefix: str = "") -> Iterator[str]:
    """Every key that may be set, sections included, as `section.key`."""
    for name, field in config_class.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Config):
                yield from dotted_keys(kind, f"{prefix}{name}.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested values by dotted keys: `{"optim": {"lr": 1}}` as `{"optim.lr": 1}`."""
    found: Values = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _explain(error: ValidationError, config_class: type[Config]) -> list[str]:
    """One line for each key; where a value may be of several kinds, pydantic complains once for each of them."""
    known = list(dotted_keys(config_class))
    lines: list[str] = []
    complaints: dict[str, list[tuple[str, str]]] = {}
    hints: dict[str, str] = {}
    for details in error.errors():
        key, message = _key(details, known), details["msg"]
        if details["type"] == "extra_forbidden":
            lines.append(f"  unknown key '{key}'{_suggestion(key, known)}")
        elif details["type"] == "missing":
            lines.append(f"  missing key '{key}'")
        elif details["type"] == "value_error":
            complaints.setdefault(key, []).append((message.removeprefix("Value error, "), ""))
        else:
            found = f" (found {details['input']!r})"
            if details["type"] == "tuple_type" and isinstance(details["input"], int | float | str):
                message = f"input should be a list, such as [{details['input']}]"
            if details["type"] == "string_type" and isinstance(details["input"], int | float | datetime.date):
                hints[key] = f"; text that looks like something else needs two kinds of quotes: {key}='\"TEXT\"'"
            complaints.setdefault(key, []).append((message[0].lower() + message[1:], found))
    for key, told in complaints.items():
        messages = ", or ".join(dict.fromkeys(message for message, _ in told))
        lines.append(f"  {key}{': ' if key else ''}{messages}{told[-1][1]}{hints.get(key, '')}")
    return lines


def _key(details: ErrorDetails, known: list[str]) -> str:
    """Where the mistake is, as `section.key`, without the names that pydantic gives to the kinds of a union."""
    plain = shown = ""
    for depth, part in enumerate(details["loc"], start=1):
        is_named = details["type"] in ("extra_forbidden", "missing") and depth == len(details["loc"])
        if isinstance(part, int):
            shown += f".{part}"
        elif (deeper := f"{plain}.{part}".lstrip(".")) in known or is_named:
            plain, shown = deeper, f"{shown}.{part}"
    return shown.lstrip(".")


def _suggestion(key: str, known: list[str]) -> str:
    """The known key with the same last name (`lr` for `optim.lr`), else the one spelled most alike."""
    same_name = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    close = same_name or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
