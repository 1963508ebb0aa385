"""The `model.yaml` beside a VQGAN checkpoint: which class it is, and the arguments that give its sizes."""

from pathlib import Path

import yaml
from pydantic import ConfigDict, PositiveInt

from mcbeit.config import Config, validate
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.tokenizer_kinds import TokenizerKind

CLASSES = {"GumbelVQ": "vqgan", "VQModel": "vqgan-ema", "EMAVQ": "vqgan-ema"}  # last part of `target` -> kind


class _Section(Config):
    """A part of the file. What is there beyond our names is for training or decoding."""

    model_config = ConfigDict(extra="ignore")


class _Encoder(_Section):
    ch: PositiveInt
    ch_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    z_channels: PositiveInt
    resolution: PositiveInt
    attn_resolutions: tuple[PositiveInt, ...]
    in_channels: PositiveInt = 3
    double_z: bool = False
    resamp_with_conv: bool = True


class _Arguments(_Section):
    embed_dim: PositiveInt
    n_embed: PositiveInt
    ddconfig: _Encoder


class _Model(_Section):
    target: str = ""
    params: _Arguments


class VQGANDescription(_Section):
    """What a `model.yaml` says, by its own names."""

    model: _Model

    def sizes(self, kind: TokenizerKind, path: Path) -> Config:
        """The config of the model. Raises WeightsError if it is of another kind than the weights, or has another form.

        `path` is the file, for messages.
        """
        target, arguments = self.model.target, self.model.params
        if (named := CLASSES.get(target.rpartition(".")[2], kind.name)) != kind.name:
            raise WeightsError(
                f"'{path}' is of the class {target}, a {named}, but its weights are those of {kind.name}"
            )
        encoder, last = arguments.ddconfig, len(arguments.ddconfig.ch_mult) - 1
        attended = [i for i in range(last + 1) if encoder.resolution // 2**i in encoder.attn_resolutions]
        for name, found, allowed in (
            ("z_channels", encoder.z_channels, arguments.embed_dim),
            ("in_channels", encoder.in_channels, 3),
            ("double_z", encoder.double_z, False),
            ("resamp_with_conv", encoder.resamp_with_conv, True),
            ("attention on the levels", attended, [last]),
        ):
            if found != allowed:
                raise WeightsError(f"'{path}' has {name} {found}; here it can only be {allowed}")
        values = {
            "vocab_size": arguments.n_embed,
            "embed_dim": arguments.embed_dim,
            "dim": encoder.ch,
            "multipliers": encoder.ch_mult,
            "num_blocks": encoder.num_res_blocks,
        }
        try:
            return validate(kind.config, values, origin=str(path))
        except ConfigError as error:
            raise WeightsError(f"'{path}' describes no {kind.name} tokenizer: {error}") from error


def read_description(path: Path) -> VQGANDescription:
    """Read a `model.yaml`. Raises WeightsError if it does not describe a VQGAN."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}")
        return validate(VQGANDescription, values, origin=path.name)
    except (OSError, ValueError, yaml.YAMLError, ConfigError) as error:
        raise WeightsError(f"'{path}' describes no VQGAN: {error}") from error
