"""The manifest beside our weights: NAME.json tells what NAME.safetensors is, so that nothing has to be guessed."""

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mcbeit.config import Config, validate
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.file_hash import file_hash
from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig


class WeightsManifest(Config):
    """What a file of our weights holds."""

    format: Literal[1] = 1
    kind: Literal["mcbeit-weights"] = "mcbeit-weights"
    sha256: str  # of the file of weights
    model: ModelConfig
    image_size: int = Field(ge=1)  # pixels that the positions are for
    preprocess: Preprocess | None = None  # None: not known
    vocab_size: int | None = None  # codes of the vocabulary head, if the file has one
    num_classes: int | None = None  # of the classifier, if the file has one
    origin: str  # the name of the file that they were converted from, and its layout
    mcbeit: str  # the version that wrote it


def manifest_path(weights: Path) -> Path:
    """Where the manifest of a file of weights lies."""
    return weights.with_suffix(".json")


def read_manifest(weights: Path) -> WeightsManifest | None:
    """The manifest beside a file of weights; None if there is none, or if the JSON beside it is something else.

    Raises WeightsError if it is damaged or of other weights than those it lies beside.
    """
    path = manifest_path(weights)
    try:
        if (values := _values(path)) is None:
            return None
        manifest = validate(WeightsManifest, values, origin=str(path))
    except (ValueError, ConfigError) as error:
        raise WeightsError(f"the manifest '{path}' is damaged: {error}; remove it or make the weights anew") from error
    if manifest.sha256 != file_hash(weights):
        raise WeightsError(
            f"'{weights}' is not the file that its manifest '{path.name}' describes: it is damaged or was replaced. "
            "Bring the old one back, or remove the manifest to have the model inferred"
        )
    return manifest


def remove_manifest(weights: Path) -> None:
    """Remove the manifest of a file of weights that will be replaced; any other JSON stays."""
    with contextlib.suppress(ValueError):
        if _values(manifest_path(weights)) is not None:
            manifest_path(weights).unlink()


def _values(path: Path) -> dict[str, Any] | None:
    """The content of a manifest; None if there is none. Raises ValueError if it is no JSON."""
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) and values.get("kind") == "mcbeit-weights" else None
