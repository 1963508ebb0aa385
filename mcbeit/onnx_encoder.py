"""The encoder of an exported folder: ONNX Runtime, numpy and Pillow. It does not load torch."""

import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.encoder import EncoderConfig, PixelEncoder, Pixels
from mcbeit.errors import EncoderError
from mcbeit.machine import ONNXRUNTIMES, num_cores
from mcbeit.model_folder import EMBEDDING, INPUT, PATCH_TOKENS, read_model_folder

PROVIDERS = {  # what a person says -> ONNX Runtime's name
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
}
OPTIONS_OF_EXPORT = ("pooling", "layer", "whitening", "weights", "num_heads")


class OnnxEncoder(PixelEncoder):
    """A graph of a model folder on one execution provider.

    `provider` is one of PROVIDERS; by default cuda where ONNX Runtime was built with it, else cpu. What was asked for
    runs, or EncoderError says why not. `threads` are those of one inference, by default the cores that this process may
    use. It may be called from many threads.
    """

    def __init__(
        self,
        folder: str | Path,
        config: EncoderConfig | None = None,
        *,
        provider: str | None = None,
        threads: int | None = None,
    ) -> None:
        config = config or EncoderConfig()
        self.folder = Path(folder).expanduser()
        self.manifest = read_model_folder(self.folder)
        _refuse_other_choices(self.manifest.name, config)
        self.notes = self.manifest.notes
        self.graph = self.manifest.graph(config.image_size)
        self.spec = self.graph.spec.model_copy(
            update={
                "normalize": config.normalize if "normalize" in config.model_fields_set else self.graph.spec.normalize
            }
        )
        self.session = open_session(self.folder / self.graph.file, provider=provider, threads=threads)
        self.provider = self.session.get_providers()[0]
        if read_model_folder(self.folder, verify=False) != self.manifest:
            raise EncoderError(f"'{self.folder}' was replaced while it was read; load it again")

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        (found,) = self.run(pixels, [PATCH_TOKENS if patches else EMBEDDING])
        return found

    def run(self, pixels: Pixels, outputs: Sequence[str]) -> list[np.ndarray]:
        """Some outputs of the graph, by name."""
        found: list[np.ndarray] = self.session.run(list(outputs), {INPUT: np.ascontiguousarray(pixels)})
        return found


def open_session(path: Path, *, provider: str | None = None, threads: int | None = None) -> Any:
    """An ONNX Runtime session that runs on the provider that was asked for. Raises EncoderError if it cannot."""
    runtime = onnxruntime()
    wanted = _provider(runtime, provider)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or max(1, int(num_cores()))
    options.inter_op_num_threads = 1
    # threads that wait by spinning take the cores that decode the next images
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: what matters is raised
    try:
        providers = [wanted] if wanted == PROVIDERS["cpu"] else [wanted, PROVIDERS["cpu"]]
        session = runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # each provider has errors of its own
        raise EncoderError(f"ONNX Runtime cannot open '{path}' on {wanted}: {' '.join(str(error).split())}") from error
    if session.get_providers()[0] != wanted:
        raise EncoderError(
            f"{wanted} was asked for, but ONNX Runtime runs '{path.name}' on {session.get_providers()[0]}: libraries "
            "that the provider needs cannot be loaded; mcbeit doctor shows what is there, provider=cpu does without"
        )
    return session


def onnxruntime() -> Any:
    """The module. Raises EncoderError if it is missing, or if two packages have overwritten each other's files."""
    installed = [name for name in ONNXRUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        raise EncoderError(
            f"{' and '.join(installed)} are both installed, and write to the same folder; keep one: "
            f"pip uninstall -y {' '.join(installed)} && pip install {installed[-1]}"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EncoderError(
            f"an exported model needs ONNX Runtime ({error}): pip install 'mcbeit[cpu]', or 'mcbeit[gpu]' for CUDA"
        ) from error


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _provider(runtime: Any, wanted: str | None) -> str:
    there = runtime.get_available_providers()
    if wanted is None:
        return PROVIDERS["cuda"] if PROVIDERS["cuda"] in there else PROVIDERS["cpu"]
    name = PROVIDERS.get(wanted, wanted)
    if name not in there:
        known = [short for short, long in PROVIDERS.items() if long in there]
        raise EncoderError(
            f"provider {wanted} is not in this ONNX Runtime, which has {', '.join(known)}; for CUDA: pip uninstall -y "
            "onnxruntime && pip install 'mcbeit[gpu]'"
        )
    return name


def _refuse_other_choices(name: str, config: EncoderConfig) -> None:
    """Raise EncoderError for a choice that an exported graph has made already."""
    told = [key for key in OPTIONS_OF_EXPORT if key in config.model_fields_set]
    told += [key for key in ("final_norm", "jpeg_draft") if key in config.model_fields_set]
    if told:
        raise EncoderError(
            f"{', '.join(told)}: chosen when {name} was exported, and part of its graph; export it again with other "
            f"choices, or load the model that it was exported from"
        )
