"""What `mcbeit weights show` says of a detector: what it is, and the account of every key."""

from typing import Any

from mcbeit.detection.loading import LoadedDetector
from mcbeit.weight_table import blocks, colours, scaling, table_lines


def text(loaded: LoadedDetector) -> str:
    """Aligned lines: the facts, then the keys of each fate and rule."""
    return "\n".join(table_lines(loaded.account.origin, facts(loaded), loaded.account))


def facts(loaded: LoadedDetector) -> list[tuple[str, str]]:
    """What it is, as pairs of a word and a line."""
    shape, model = loaded.shape, loaded.shape.model
    side, pyramid = loaded.image_size // model.patch_size, shape.detector.pyramid
    tables = "two tables" if model.bias_tables == "shared" else "a table per block"
    parameters = sum(value.numel() for value in loaded.model.parameters())
    classes = f"{shape.num_classes} class{'es' * (shape.num_classes != 1)}"
    return [
        ("model", f"Mask R-CNN: {blocks(model)}"),
        ("", f"{tables if model.is_relative else 'no tables'}; {scaling(model)}; windows of {shape.window} patches"),
        ("images", f"{loaded.image_size} px, the longer side; {side} x {side} patches of {model.patch_size} px"),
        ("heads", f"{classes}; {pyramid} pyramid of {shape.detector.channels} channels"),
        ("numbers", f"{parameters:,}"),
        ("preprocess", colours(loaded.preprocess)),
    ]


def as_json(loaded: LoadedDetector) -> dict[str, Any]:
    """All of it as JSON values."""
    shape = loaded.shape
    return {
        "origin": loaded.account.origin,
        "model": shape.model.model_dump(mode="json"),
        "window": shape.window,
        "num_classes": shape.num_classes,
        "detector": shape.detector.model_dump(mode="json"),
        "image_size": loaded.image_size,
        "parameters": sum(value.numel() for value in loaded.model.parameters()),
        "preprocess": None if loaded.preprocess is None else loaded.preprocess.model_dump(mode="json"),
        "account": loaded.account.as_json(),
    }
