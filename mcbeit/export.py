"""Exporting a model: graphs that give its numbers, with everything that others need to use them, or nothing at all."""

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from safetensors.torch import save_file

from mcbeit.atomic import replacing_folder, write_bytes, write_json
from mcbeit.body_loading import LoadedBody, load_body
from mcbeit.config import read_values
from mcbeit.data import DataConfig
from mcbeit.encoder import EncoderConfig, EncoderSpec, Precision, derived_fingerprint
from mcbeit.errors import ExportError, ParityError
from mcbeit.graph import output_names, write_graph
from mcbeit.machine import cpu_name, num_cores
from mcbeit.model_card import model_card, model_config, preprocessor_config
from mcbeit.model_folder import EMBEDDING, INPUT, MANIFEST, PATCH_TOKENS, Graph, ModelManifest, hash_files
from mcbeit.onnx_encoder import open_session
from mcbeit.parity import Compute, Numbers, compute_all, failures, measure
from mcbeit.precision import write_precision
from mcbeit.progress import Display
from mcbeit.real_images import real_pixels
from mcbeit.speed import measure_speed
from mcbeit.torch_encoder import TorchEncoder

TORCH_BATCH = 8
VERSIONS_OF = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")


def _split(value: Any) -> Any:
    """224,384 as the command line has it."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list | tuple | None) else [value]


Integers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)]


class ExportConfig(EncoderConfig):
    """What is exported. The choices about tokens are those of `EncoderConfig`; they become part of the graph."""

    image_size: Integers | None = None  # type: ignore[assignment]  # pixels, one or several: a graph for each
    layers: Integers = ()  # blocks whose patch tokens become outputs too: layer_N
    precision: Precision = "fp32"  # fp16 for GPUs, int8 for CPUs
    license: str | None = None  # of the weights, as an SPDX identifier; it is written down, nothing is inferred
    images: DataConfig = DataConfig()  # what parity is measured on; default: the images of the run, or a photograph
    num_images: int = Field(64, ge=2)
    measure_speed: bool = True


@dataclass(frozen=True)
class Exported:
    """A folder that was written."""

    folder: Path
    manifest: ModelManifest


def export_model(source: str | Path, out: Path, config: ExportConfig | None = None, *, force: bool = False) -> Exported:
    """Write the folder `out`, whole or not at all; `force` replaces a model that is there.

    Raises ParityError if a graph does not give the numbers of the model, ExportError if the place is taken or torch
    cannot export the model, EncoderError or WeightsError if the model cannot be loaded, DataError without images.
    """
    config = config or ExportConfig()
    _check_place(out, force=force)
    sizes = config.image_size or (None,)
    with Display("export", 1 + 3 * len(sizes)) as display, _writing(out) as folder:
        graphs: list[Graph] = []
        for number, size in enumerate(sizes):
            loaded = load_body(source, _encoder_config(config, size))
            encoder = TorchEncoder.of(loaded, _encoder_config(config, size), device="cpu", extra_layers=config.layers)
            for note in encoder.notes if number == 0 else ():
                display.note(note)
            display.advance(f"{loaded.name} read")
            file = "model.onnx" if number == 0 else f"model_{encoder.spec.image_size}.onnx"
            pixels, told = real_pixels(_images(source, config), encoder.spec.preprocess, config.num_images)
            graphs.append(_write_one(encoder, folder / file, pixels, config, display))
            if number == 0:
                _write_weights(loaded, encoder.spec, folder)
                first, images = loaded, told
        manifest = _manifest(source, first, graphs, config, images)
        write_bytes(folder / "README.md", model_card(manifest, out.name).encode())
        manifest = manifest.model_copy(update={"files": hash_files(folder)})
        write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
        display.advance("hashed")
    return Exported(out, manifest)


def _write_one(encoder: TorchEncoder, path: Path, pixels: np.ndarray, config: ExportConfig, display: Display) -> Graph:
    """One graph, compared with the model and timed. Raises ParityError."""
    spec, precision = encoder.spec, config.precision
    if precision != "fp32":
        change = f"int8 by {hashlib.sha256(pixels.tobytes()).hexdigest()}" if precision == "int8" else precision
        fingerprint = derived_fingerprint(spec.fingerprint, change)
        spec = spec.model_copy(update={"precision": precision, "fingerprint": fingerprint})
    wanted = compute_all(_in_torch(encoder), pixels, TORCH_BATCH)
    plain = path if precision == "fp32" else path.with_suffix(".fp32.onnx")
    write_graph(encoder.model, spec, plain)
    display.advance(f"{path.name} written")
    left_out: list[str] = []
    if precision != "fp32":
        left_out = write_precision(plain, path, precision, wanted, pixels, display.note)
        for rest in plain.parent.glob(f"{plain.name}*"):
            rest.unlink()
    session = open_session(path, provider="cpu")
    compute = _in_onnx(session)
    comparisons = measure(wanted, compute, pixels)
    names = output_names(encoder.model.extra_layers)
    shapes = [tuple(shape[1:]) for shape in (output.shape for output in session.get_outputs())]
    graph = Graph(file=path.name, spec=spec, outputs=dict(zip(names, shapes, strict=True)), parity=tuple(comparisons))
    if complaints := failures(comparisons, precision):
        raise ParityError(f"{path.name} does not give the numbers of {spec.name}: {'; '.join(complaints)}", graph)
    if config.measure_speed:
        ways = {
            "torch fp32": encoder.compute,
            f"onnxruntime {precision}": lambda batch: session.run([EMBEDDING], {INPUT: batch}),
        }
        graph = graph.model_copy(update={"speed": tuple(measure_speed(ways, pixels))})
    if left_out:
        display.note(f"{len(left_out)} of the products keep 32 bits, where 8 measured badly")
    display.advance(f"{path.name} compared")
    return graph


def _in_torch(encoder: TorchEncoder) -> Compute:
    def compute(pixels: np.ndarray) -> Numbers:
        with torch.inference_mode():
            embeddings, patches, *_ = encoder.model(torch.from_numpy(pixels))
        return Numbers(embeddings.numpy(), patches.numpy())

    return compute


def _in_onnx(session: Any) -> Compute:
    return lambda pixels: Numbers(*session.run([EMBEDDING, PATCH_TOKENS], {INPUT: pixels}))


def _write_weights(loaded: LoadedBody, spec: EncoderSpec, folder: Path) -> None:
    """model.safetensors with the JSON that tells others what it is."""
    tensors = {name: value.detach().clone().contiguous() for name, value in loaded.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "timm": str(loaded.timm)})
    num_features = int(loaded.body.model.num_features)
    write_json(folder / "config.json", model_config(loaded.timm.name, loaded.timm.options, spec, num_features))
    write_json(folder / "preprocessor_config.json", preprocessor_config(spec.preprocess))


def _manifest(
    source: str | Path, loaded: LoadedBody, graphs: list[Graph], config: ExportConfig, images: str
) -> ModelManifest:
    return ModelManifest(
        name=loaded.name,
        license=config.license,
        source=str(source),
        graphs=tuple(graphs),
        preprocessing=graphs[0].spec.preprocess.describe(),
        training=_training(source),
        notes=loaded.notes,
        parity_images=images,
        machine=f"{cpu_name()}, {num_cores():g} cores",
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "mcbeit": importlib.metadata.version("mcbeit")}
    for name in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _training(source: str | Path) -> dict[str, Any] | None:
    """The config of the run that a model comes from, if it comes from one."""
    run = Path(source).expanduser()
    return read_values(run / "config.yaml") if (run / "config.yaml").is_file() else None


def _images(source: str | Path, config: ExportConfig) -> DataConfig:
    """Where to take images from: as configured, else the run's own, if they are still there."""
    training = _training(source)
    if config.images.source is not None or training is None:
        return config.images
    data = {key: value for key, value in training.get("data", {}).items() if key in ("source", "kind", "channels")}
    judged = training.get("eval") or {}
    location = judged.get("queries") or judged.get("source") or data.get("source")
    is_there = isinstance(location, str) and ("://" in location or Path(location).expanduser().exists())
    return DataConfig(**{**data, "source": location}) if is_there else config.images


def _encoder_config(config: ExportConfig, image_size: int | None) -> EncoderConfig:
    values = {name: getattr(config, name) for name in EncoderConfig.model_fields if name in config.model_fields_set}
    return EncoderConfig(**{**values, "image_size": image_size})


def _check_place(out: Path, *, force: bool) -> None:
    if not out.absolute().parent.is_dir():
        raise ExportError(f"the folder of '{out}' does not exist; make it first")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise ExportError(f"'{out}' exists and is no exported model; choose another name")
    if not force:
        raise ExportError(f"'{out}' exists; choose another name, or replace it with --force")


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[Path]:
    try:
        with replacing_folder(out) as partial:
            yield partial
    except OSError as error:
        raise ExportError(f"'{out}' cannot be written: {error.strerror or error}") from error
