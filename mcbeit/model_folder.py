"""The folder of an exported model: graphs, and a manifest that tells everything about their numbers. No torch here.

DIR/model.onnx                  uint8 [batch, size, size, 3] in; embedding, patch_tokens and chosen layers out
DIR/model_384.onnx              the same for a further image size
DIR/manifest.json               `ModelManifest`
DIR/model.safetensors           the weights by timm's names, with config.json and preprocessor_config.json
DIR/README.md                   the model card
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mcbeit.config import Config, validate
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import ConfigError, EncoderError
from mcbeit.file_hash import file_hash

MANIFEST = "manifest.json"
INPUT, EMBEDDING, PATCH_TOKENS = "pixels", "embedding", "patch_tokens"


class Comparison(Config):
    """How far the graph is from the model in torch, on real images at one batch size."""

    batch_size: int
    num_images: int
    min_cosine: float
    mean_cosine: float
    min_patch_cosine: float
    max_difference: float = Field(allow_inf_nan=True)  # of any number of an embedding
    recall_at_10: float | None = None  # share of the ten nearest neighbours that stay; only over many images


class Speed(Config):
    """Images per second, all measured in one run, in turn."""

    runtime: str  # "torch fp32", "torch bf16", "onnxruntime fp32" and so on
    batch_size: int
    images_per_second: float


class Graph(Config):
    """One file of the folder that can be run."""

    file: str
    spec: EncoderSpec
    outputs: dict[str, tuple[int, ...]]  # name -> shape of one image's part
    parity: tuple[Comparison, ...] = ()
    speed: tuple[Speed, ...] = ()


class ModelManifest(Config):
    """What is in the folder of a model, and how it was made."""

    format: Literal[1] = 1
    kind: Literal["mcbeit-model"] = "mcbeit-model"
    name: str
    license: str | None = None  # of the weights; None: nobody said
    source: str  # what was exported
    graphs: tuple[Graph, ...] = Field(min_length=1)
    preprocessing: dict[str, Any]  # every rule by name, of the first graph
    training: dict[str, Any] | None = None  # the config of the run that trained it
    notes: tuple[str, ...] = ()
    parity_images: str = ""  # which images the comparison was made on
    machine: str = ""  # where speed and parity were measured
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)  # name -> SHA-256, of every file but this one

    def graph(self, image_size: int | None = None) -> Graph:
        """The graph of an image size; the first without one. Raises EncoderError if there is none."""
        sizes = [graph.spec.image_size for graph in self.graphs]
        if image_size is None:
            return self.graphs[0]
        if image_size not in sizes:
            raise EncoderError(
                f"{self.name} was exported for image size {', '.join(map(str, sizes))}, not {image_size}; export it "
                f"again with image_size={','.join(map(str, [*sizes, image_size]))}"
            )
        return self.graphs[sizes.index(image_size)]


def is_model_folder(folder: Path) -> bool:
    """Whether a folder says that it is an exported model, if perhaps a damaged one. Checkpoints have manifests too."""
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return folder.is_dir()
    return not (isinstance(values, dict) and "step" in values)


def read_model_folder(folder: Path, *, verify: bool = True) -> ModelManifest:
    """The manifest of a folder, whose files are then those that it describes.

    Raises EncoderError if it is no such folder, or if a file is missing or another one.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("kind") != "mcbeit-model":
            raise EncoderError(f"'{path}' is the manifest of something else, not of an exported model")
        manifest = validate(ModelManifest, values, origin=str(path))
    except FileNotFoundError as error:
        raise EncoderError(f"'{folder}' is no exported model: it has no {MANIFEST}") from error
    except (OSError, ValueError, ConfigError) as error:
        raise EncoderError(f"the manifest '{path}' cannot be used: {error}; export the model again") from error
    for name, wanted in manifest.files.items() if verify else ():
        if not (folder / name).is_file():
            raise EncoderError(f"'{folder}' lacks its file {name}; copy the whole folder, or export the model again")
        if file_hash(folder / name) != wanted and name.endswith((".onnx", ".data")):
            raise EncoderError(
                f"'{folder / name}' is not the file that the manifest describes: it is damaged or was replaced; export "
                "the model again"
            )
    return manifest


def hash_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder but the manifest, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
