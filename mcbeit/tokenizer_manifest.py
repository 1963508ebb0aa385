"""The manifest beside a converted tokenizer: NAME.json tells what NAME.safetensors is."""

import json
from pathlib import Path
from typing import Any, Literal

from mcbeit.config import Config, validate
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.file_hash import file_hash
from mcbeit.tokenizer_kinds import FileKind
from mcbeit.weight_manifest import manifest_path


class TokenizerManifest(Config):
    """What a file of a tokenizer's weights holds."""

    format: Literal[1] = 1
    kind: Literal["mcbeit-tokenizer"] = "mcbeit-tokenizer"
    sha256: str  # of the file of weights
    tokenizer: FileKind
    config: dict[str, Any]  # its sizes
    origin: str  # the name of the file that it was converted from
    mcbeit: str  # the version that wrote it


def read_tokenizer_manifest(weights: Path) -> TokenizerManifest | None:
    """The manifest beside a file of weights; None if there is none, or if the JSON beside it is something else.

    Raises WeightsError if it is damaged or of other weights than those it lies beside.
    """
    path = manifest_path(weights)
    if weights.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("kind") != "mcbeit-tokenizer":
            return None
        manifest = validate(TokenizerManifest, values, origin=str(path))
    except (ValueError, ConfigError) as error:
        raise WeightsError(f"the manifest '{path}' is damaged: {error}; convert the tokenizer again") from error
    if manifest.sha256 != file_hash(weights):
        raise WeightsError(f"'{weights}' is not the file that its manifest '{path.name}' describes; convert it again")
    return manifest
