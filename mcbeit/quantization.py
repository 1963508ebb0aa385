"""The same graph in fewer bits: half precision for GPUs, 8-bit weights for CPUs."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.errors import ExportError
from mcbeit.model_folder import INPUT
from mcbeit.onnx_encoder import onnxruntime


def to_fp16(source: Path, target: Path) -> None:
    """Weights and products in half precision; outputs stay float32, pixels uint8."""
    import onnx

    onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.save(model, str(target))


def quantizable(path: Path) -> list[str]:
    """The nodes whose weights can have 8 bits: products with a constant matrix; in a convolutional network all but the
    first convolution. The patch embedding is left out.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    return [*products, *convolutions[1:]]


def is_convolutional(path: Path) -> bool:
    """Whether most of the work of a graph is in convolutions."""
    import onnx

    kinds = [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]
    return kinds.count("Conv") > kinds.count("MatMul")


def to_int8(source: Path, target: Path, *, left_out: Sequence[str], batches: Sequence[np.ndarray]) -> None:
    """8-bit weights, one scale per channel, for all of `quantizable` but the nodes `left_out`.

    In transformers the scale of activations is found at each run and weights are unsigned: signed ones of 8 bits
    overflow on CPUs without VNNI. In convolutional networks the scale is found on `batches` of pixels, and weights are
    signed, as the fast kernels want them, of 7 bits for the same reason.
    """
    nodes = [name for name in quantizable(source) if name not in set(left_out)]
    if not nodes:
        raise ExportError("no node is left whose weights could have 8 bits")
    onnxruntime()
    with _quiet():
        if is_convolutional(source):
            _static(source, target, nodes, batches)
        else:
            _dynamic(source, target, nodes)


def _dynamic(source: Path, target: Path, nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source),
        str(target),
        nodes_to_quantize=nodes,
        per_channel=True,
        weight_type=QuantType.QUInt8,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
    )


def _static(source: Path, target: Path, nodes: list[str], batches: Sequence[np.ndarray]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        _reader(batches),
        nodes_to_quantize=nodes,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_providers=["CPUExecutionProvider"],
    )


def _reader(batches: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools tell on the root logger what they recommend, and that they worked."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
