"""The jobs that `mcbeit train` knows, told apart by the key `job` of their config."""

from collections.abc import Sequence
from typing import Any

from mcbeit.config import override, read_values, validate

from mcbeit.errors import ConfigError
from mcbeit.pretrain import PretrainConfig, pretrain
from mcbeit.tokenizer_training import TokenizerConfig, train_tokenizer

Job = PretrainConfig | TokenizerConfig


def load_job(source: str, assignments: Sequence[str] = ()) -> Job:
    """The config of a preset or file with overrides. Raises ConfigError with every mistake in it."""
    values = override(read_values(source), assignments)
    kind = values.get("job", "pretrain")
    if kind == "pretrain":
        return validate(PretrainConfig, values, origin=source)
    if kind == "tokenizer":
        return validate(TokenizerConfig, values, origin=source)
    raise ConfigError(f"{source}: job must be pretrain or tokenizer, found {kind!r}")


def run_job(config: Job, *, resume: bool = False) -> dict[str, Any]:
    """Start or resume the run that `config` describes; returns its summary."""
    if isinstance(config, PretrainConfig):
        return pretrain(config, resume=resume)
    return train_tokenizer(config, resume=resume)
