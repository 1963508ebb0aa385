"""What `mcbeit serve` does with its words."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mcbeit.config import ASSIGNMENT, dotted_keys, override, validate
from mcbeit.errors import ConfigError
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.log import set_up_log
from mcbeit.serve.memory import keep_freed_memory


def config_of(words: Sequence[str], *, fake: bool) -> ServeConfig:
    """The config that models and assignments say. Raises ConfigError."""
    options = {key.partition(".")[0] for key in dotted_keys(ServeConfig)}
    assignments = [
        word
        for word in words
        if ASSIGNMENT.fullmatch(word)
        and word.partition("=")[0].partition(".")[0] in options
        and not Path(word).exists()
    ]
    models = [word for word in words if word not in assignments]
    values = override({}, assignments)
    if "models" in values and (models or fake):
        raise ConfigError("models are named twice: as words and by models=; leave one of them out")
    if models or fake:
        values["models"] = (*models, *(["fake"] if fake else []))
    return validate(ServeConfig, values, origin="mcbeit serve")


def run_plain(config: ServeConfig, *, told: Callable[[str], None]) -> None:
    """Serve in this process until it is asked to stop."""
    from mcbeit.serve.plain import PlainServer

    set_up_log(config.log_format)
    keep_freed_memory()
    server = PlainServer(config)
    for name, model in server.service.models.items():
        told(f"{name}: {model.spec.dim} numbers per image, {model.spec.image_size} px, revision {model.revision[:12]}")
    told(f"ready at {server.address} (routes: /docs)")
    server.serve()
    told("stopped; every request that was accepted is answered")
