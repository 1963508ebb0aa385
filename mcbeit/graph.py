"""Writing a model as an ONNX graph, with a batch of any size."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcbeit.bodies import BeitBody
from mcbeit.embedding_model import EmbeddingModel
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import ExportError
from mcbeit.folding import FoldedBeit
from mcbeit.image_files import COLOURS
from mcbeit.model_folder import EMBEDDING, INPUT, PATCH_TOKENS

OPSET = 20  # the first with Gelu in one node
INLINE_BYTES = 1_900_000_000  # of weights: more do not fit into one protobuf file, and lie beside it
TRACED_BATCH = 2  # 1 would be taken for a constant


def folded(model: EmbeddingModel) -> EmbeddingModel:
    """The model as it is exported: a BEiT folded, anything else as it is."""
    if not isinstance(model.body, BeitBody):
        return model
    found = copy.copy(model)
    found._modules = dict(model._modules)
    found.body = FoldedBeit(model.body.model).eval()
    return found


def output_names(layers: tuple[int, ...]) -> list[str]:
    """The names of the outputs, in order."""
    return [EMBEDDING, PATCH_TOKENS, *(f"layer_{number}" for number in layers)]


def write_graph(model: EmbeddingModel, spec: EncoderSpec, path: Path, *, fold: bool = True) -> None:
    """Write the model to `path`; its spec is among the metadata. Raises ExportError if torch cannot export it.

    `fold=False` leaves a BEiT as timm has it, for comparison: its fused attention cannot be exported with such a batch.
    """
    onnx = _onnx()
    size, channels = spec.image_size, spec.preprocess.channels
    dtype = torch.uint8 if channels == COLOURS else torch.float32
    pixels = torch.zeros(TRACED_BATCH, size, size, channels, dtype=dtype)
    names = output_names(model.extra_layers)
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                folded(model) if fold else model,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # torch's exporter has many ways to fail
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise ExportError(f"torch cannot export {spec.name} with a batch of any size: {reason}") from error
    proto = program.model_proto
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:  # torch takes it for a constant without a word
        raise ExportError(f"torch exported {spec.name} for batches of {TRACED_BATCH} only")
    for name, value in {"mcbeit.spec": spec.model_dump_json(), "mcbeit.fingerprint": spec.fingerprint}.items():
        proto.metadata_props.add(key=name, value=value)
    onnx.save(proto, str(path), save_as_external_data=_num_bytes(model) > INLINE_BYTES, location=f"{path.name}.data")


def _num_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _onnx() -> Any:
    """The module onnx. Raises ExportError if it or what torch exports with is missing."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx imports it late
    except ImportError as error:
        raise ExportError(f"export needs onnx and onnxscript ({error}): pip install 'mcbeit[export]'") from error
    return onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says on the way is for its developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
