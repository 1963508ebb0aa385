"""mcbeit.config: read a preset or a file, override, validate, dump."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, ValidationError, model_validator

from mcbeit import config
from mcbeit.config import (
    Config,
    dotted_keys,
    dump,
    flatten,
    load,
    override,
    preset_names,
    read_values,
    split_assignments,
    validate,
)
from mcbeit.data import DataConfig
from mcbeit.errors import ConfigError
from mcbeit.pretrain_setup import PretrainConfig


class Optim(Config):
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = 0.05
    warmup_epochs: int = Field(default=1, ge=0)


class Mask(Config):
    kind: Literal["block", "random"] = "block"
    ratio: float = Field(default=0.4, ge=0, le=1)


class Recipe(Config):
    name: str
    epochs: int = Field(default=10, ge=1)
    optim: Optim = Optim()
    mask: Mask | None = None
    sizes: tuple[int, ...] = (224, 112)
    folder: Path = Path("runs")

    @model_validator(mode="after")
    def warmup_fits(self) -> "Recipe":
        if self.optim.warmup_epochs > self.epochs:
            raise ValueError("optim.warmup_epochs must not exceed epochs")
        return self


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(values: config.Values) -> list[str]:
    """The lines of the error, without its first."""
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, values, origin="recipe")
    first, *lines = str(caught.value).splitlines()
    assert first == f"recipe: {len(lines)} mistake{'s' * (len(lines) > 1)}"
    return [line.strip() for line in lines]


# Reading


def test_preset_names__are_the_files() -> None:
    assert preset_names() == sorted(path.stem for path in config.PRESETS.iterdir() if path.suffix == ".yaml")


@pytest.mark.parametrize("name", preset_names())
def test_read_values__every_preset_is_a_mapping_of_plain_keys(name: str) -> None:
    assert all(isinstance(key, str) for key in read_values(name))


def test_read_values__preset_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "name: tiny")
    monkeypatch.setattr(config, "PRESETS", tmp_path)
    assert preset_names() == ["recipe"]
    assert read_values("recipe") == {"name": "tiny"}


def test_read_values__near_miss_names_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "name: tiny")
    monkeypatch.setattr(config, "PRESETS", tmp_path)
    with pytest.raises(ConfigError, match="'recip' is neither a preset nor a file; did you mean 'recipe'"):
        read_values("recip")


def test_read_values__file_not_found_lists_the_presets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml' is neither a preset nor a file\npresets: "):
        read_values(tmp_path / "nowhere.yaml")


def test_read_values__folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a preset nor a file"):
        read_values(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: [1, 2", "is not valid YAML"),
        ("lr: 1\n\tbad: tab", "is not valid YAML"),
        ("when: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("lr: 1\noptim: {lr: 1, lr: 2}", "key given twice: lr.*line 2"),
        ("- a\n- b", "must hold 'key: value' lines, found list"),
        ("just words", "must hold 'key: value' lines, found str"),
        ("", "must hold 'key: value' lines, found NoneType"),
    ],
)
def test_read_values__refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_values(write(tmp_path, text))


def test_read_values__not_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_values(path)


# Overriding


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("optim.lr=0.1", {"optim": {"lr": 0.1}}),
        ("a.b.c=true", {"a": {"b": {"c": True}}}),
        ("sizes=[1, 2]", {"sizes": [1, 2]}),
        ("mask={kind: block}", {"mask": {"kind": "block"}}),
        ("mask=null", {"mask": None}),
        ("name='007'", {"name": "007"}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": None}),
    ],
)
def test_override__reads_yaml_values(assignment: str, expected: config.Values) -> None:
    assert override({}, [assignment]) == expected


def test_override__keeps_the_neighbours_and_the_last_wins() -> None:
    values = {"optim": {"lr": 1.0, "weight_decay": 0.1}, "epochs": 5}
    changed = override(values, ["optim.lr=2.0", "optim.lr=3.0"])
    assert changed == {"optim": {"lr": 3.0, "weight_decay": 0.1}, "epochs": 5}
    assert values["optim"] == {"lr": 1.0, "weight_decay": 0.1}


def test_override__shared_yaml_anchor_changes_in_one_place(tmp_path: Path) -> None:
    values = read_values(write(tmp_path, "first: &same {lr: 1}\nsecond: *same"))
    assert override(values, ["first.lr=2"]) == {"first": {"lr": 2}, "second": {"lr": 1}}


def test_override__null_section_becomes_a_section() -> None:
    assert override({"mask": None}, ["mask.ratio=0.5"]) == {"mask": {"ratio": 0.5}}


@pytest.mark.parametrize("assignment", ["epochs", "", "=3", "optim.=3", ".lr=3", "optim..lr=3"])
def test_override__bad_form(assignment: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form key=value, for example"):
        override({}, [assignment])


@pytest.mark.parametrize("value", ["[1, 2", "{a: 1", "{a: 1, a: 2}", "'open"])
def test_override__bad_value(value: str) -> None:
    with pytest.raises(ConfigError, match="the value of sizes is not valid YAML"):
        override({}, [f"sizes={value}"])


# Validating


def test_validate__scientific_notation_is_a_number() -> None:
    """YAML 1.1 reads 1e-3 as text; the config does not."""
    recipe = validate(Recipe, override({"name": "x"}, ["optim.lr=1e-3", "optim.weight_decay=5e-2"]))
    assert recipe.optim == Optim(lr=0.001, weight_decay=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"wieght_decay": 0.1}}, "unknown key 'optim.wieght_decay'; did you mean 'optim.weight_decay'?"),
        ({"lr": 0.1}, "unknown key 'lr'; did you mean 'optim.lr'?"),
        ({"epoch": 1}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"mask": {"ration": 1}}, "unknown key 'mask.ration'; did you mean 'mask.ratio'?"),
        ({"zzz": 1}, "unknown key 'zzz'"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1 (found 0)"),
        (
            {"epochs": "ten"},
            "epochs: input should be a valid integer, unable to parse string as an integer (found 'ten')",
        ),
        ({"mask": {"kind": "blok"}}, "mask.kind: input should be 'block' or 'random' (found 'blok')"),
        (
            {"sizes": [224, "x"]},
            "sizes.1: input should be a valid integer, unable to parse string as an integer (found 'x')",
        ),
        ({"optim": 3}, "optim: input should be a valid dictionary or instance of Optim (found 3)"),
        ({"optim": {"warmup_epochs": 11}}, "optim.warmup_epochs must not exceed epochs"),
    ],
)
def test_validate__explains(values: config.Values, message: str) -> None:
    assert mistakes({"name": "x", **values}) == [message]


class Kinds(Config):
    """Values of several kinds, and sections that are not plain fields."""

    workers: int | Literal["auto"] = "auto"
    schedule: tuple[Optim, ...] = ()
    either: Optim | Mask | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": "many"}, "workers: .*valid integer.*, or input should be 'auto' \\(found 'many'\\)"),
        ({"schedule": [{}, {"lr": -1}]}, r"schedule\.1\.lr: input should be greater than 0 \(found -1\)"),
        ({"either": {"knid": "block"}}, r"unknown key 'either\.knid'; did you mean 'either\.kind'"),
    ],
)
def test_validate__key_without_the_names_of_kinds(values: config.Values, message: str) -> None:
    with pytest.raises(ConfigError, match=f"\n  {message}"):
        validate(Kinds, values)


def test_validate__missing_key() -> None:
    assert mistakes({"epochs": 3}) == ["missing key 'name'"]


def test_validate__all_mistakes_at_once() -> None:
    lines = mistakes({"epochs": 0, "optim": {"lr": -1, "wieght_decay": 0}, "mask": {"ratio": 2}})
    assert len(lines) == 5
    for part in ("'name'", "epochs:", "optim.lr:", "'optim.wieght_decay'", "mask.ratio:"):
        assert sum(part in line for line in lines) == 1


def test_validate__two_sections_with_the_same_key_are_both_suggested() -> None:
    class Pair(Config):
        first: Optim = Optim()
        second: Optim = Optim()

    with pytest.raises(ConfigError, match=r"did you mean 'first\.lr' or 'second\.lr'"):
        validate(Pair, {"lr": 1})


def test_validate__default_is_checked_too() -> None:
    class Wrong(Config):
        ratio: Annotated[float, Field(le=1)] = 2.0

    with pytest.raises(ConfigError, match="ratio: input should be less than or equal to 1"):
        validate(Wrong, {})


def test_config__is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Optim().lr = 1.0  # type: ignore[misc]  # what mypy says of it is what this tests


def test_flatten__gives_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None}) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": None}


def test_dotted_keys__lists_sections_and_their_keys() -> None:
    assert {"optim", "optim.lr", "mask", "mask.ratio", "name"} <= set(dotted_keys(Recipe))


# Load and dump


def test_load__file_with_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: tiny\noptim:\n  lr: 0.1\n")
    recipe = load(Recipe, path, ["optim.weight_decay=0", "mask.kind=random"])
    assert recipe == Recipe(name="tiny", optim=Optim(lr=0.1, weight_decay=0), mask=Mask(kind="random"))


def test_load__error_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: tiny\nepochs: 0\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: 1 mistake\n  epochs:"):
        load(Recipe, path)


@pytest.mark.parametrize("lr", [1e-3, 1.5e-4, 1e-10, 1 / 3, 12345678.9])
def test_dump__loads_back_equal(tmp_path: Path, lr: float) -> None:
    recipe = Recipe(name="é: 1e-3 # no comment", optim=Optim(lr=lr), mask=Mask(), folder=Path("/data/runs"))
    assert load(Recipe, write(tmp_path, dump(recipe))) == recipe


def test_dump__keeps_the_order_of_the_definition() -> None:
    assert list(yaml.safe_load(dump(Recipe(name="x")))) == list(Recipe.model_fields)


def test_validate__tells_how_to_write_text_that_looks_like_a_number() -> None:
    with pytest.raises(ConfigError) as error:
        validate(DataConfig, override({}, ["source=2024"]))
    assert """needs two kinds of quotes: source='"TEXT"'""" in str(error.value)
    assert validate(DataConfig, override({}, ['source="2024"'])).source == "2024"


def test_override__a_date_that_does_not_exist_is_one_error() -> None:
    with pytest.raises(ConfigError, match="the value of run is not valid YAML: '2020-13-45'; put text into quotes"):
        override({}, ["run=2020-13-45"])


def test_user_path__is_below_the_home_folder(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert validate(PretrainConfig, {"run": "~/runs/x"}).run == "/home/me/runs/x"


def test_split_assignments__names_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.jpg").touch()
    words = ["x.jpg", "pooling=cls", "data.kind=list", "a=b.jpg", "c=d.jpg", "http://host/a?b=c", "index.links="]
    names, assignments = split_assignments(words)
    assert names == ["x.jpg", "a=b.jpg", "http://host/a?b=c"]
    assert assignments == ["pooling=cls", "data.kind=list", "c=d.jpg", "index.links="]
