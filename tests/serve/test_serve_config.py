"""The options of the service."""

from pathlib import Path

import pytest
from serving import serve_config

from mcbeit.errors import ConfigError
from mcbeit.serve.command import config_of
from mcbeit.serve.config import api_keys, check_exposure, is_loopback


def test_config_of__words_are_models_or_assignments(tmp_path: Path) -> None:
    config = config_of([str(tmp_path), "shop=other", "port=9000", "limits.items=8"], fake=False)
    assert config.models == (str(tmp_path), "shop=other")
    assert (config.port, config.limits.items) == (9000, 8)


@pytest.mark.parametrize(
    ("words", "fake", "told"),
    [
        ([], False, "no model: name a folder"),
        (["port=80000"], True, "port: input should be less than or equal to 65535"),
        (["limits.item=3"], True, "unknown key 'limits.item'; did you mean"),
        (["models=[a]", "b"], False, "models are named twice"),
        (["limits.pixels_in_flight=5"], True, "must hold one image"),
    ],
)
def test_config_of__mistakes(words: list[str], fake: bool, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config_of(words, fake=fake)


def test_api_keys__of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# of the shop\nfirst\n\nsecond \n", encoding="utf-8")
    config = serve_config(api_keys_file=str(tmp_path / "keys"))
    assert api_keys(config, {"MCBEIT_API_KEYS": "third, first"}) == ("third", "first", "second")
    assert api_keys(serve_config(), {}) == ()


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_api_keys__a_file_without_any_is_no_open_door(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no key"):
        api_keys(serve_config(api_keys_file=str(tmp_path / "keys")), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        api_keys(serve_config(api_keys_file=str(tmp_path / "none")), {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org"])
def test_check_exposure__beyond_this_machine_only_with_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="there is no API key"):
        check_exposure(serve_config(host=host), ())
    check_exposure(serve_config(host=host), ("key",))
    check_exposure(serve_config(host=host, insecure=True), ())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_check_exposure__this_machine_needs_none(host: str) -> None:
    check_exposure(serve_config(host=host), ())
