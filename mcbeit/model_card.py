"""What a person and other programs read about an exported model: README.md, and JSON in the Hugging Face manner."""

from collections.abc import Mapping, Sequence
from typing import Any

from mcbeit.encoder import EncoderSpec
from mcbeit.model_folder import Graph, ModelManifest
from mcbeit.preprocess import Preprocess

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
# What ten lines need: numpy, Pillow and onnxruntime. Run by tests/test_export.py.
USAGE = """import json
import numpy as np, onnxruntime
from PIL import Image, ImageOps

wanted = json.load(open("{folder}/preprocessor_config.json"))
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
{resize}
pixels = np.asarray(image, np.uint8)[None]  # [image, height, width, channel]; normalising is in the graph
(vector,) = onnxruntime.InferenceSession("{folder}/{file}").run(["embedding"], {{"pixels": pixels}})
vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
"""
SHORTER_SIDE = """short, side = wanted["size"]["shortest_edge"], wanted["crop_size"]["height"]
image = image.resize([int(short * length / min(image.size)) for length in image.size], wanted["resample"])
left, top = (round((length - side) / 2) for length in image.size)
image = image.crop((left, top, left + side, top + side))"""
SQUASH = """image = image.resize((wanted["size"]["width"], wanted["size"]["height"]), wanted["resample"])"""


USE = """## Use

With numpy, Pillow and onnxruntime alone (colour images without transparency):

```python
{usage}```

With mcbeit, which reads all kinds of images, `mcbeit embed {folder} IMAGES -o vectors.npy`, or

```python
from mcbeit.encoder import load_encoder

vectors = load_encoder("{folder}").embed(["photo.jpg"])
```

In torch, by timm, on images that are normalised as preprocessor_config.json says:

```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
tokens = model.forward_features(images)
```"""


def preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    """preprocessor_config.json, for the image processors of transformers."""
    side = preprocess.image_size
    squash = preprocess.resize == "squash"
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": int(side / preprocess.crop_fraction)},
        "resample": RESAMPLING[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_reduce_labels": False,
    }


def model_config(
    architecture: str, arguments: Mapping[str, Any], spec: EncoderSpec, num_features: int
) -> dict[str, Any]:
    """config.json as timm's models have it on a hub: `timm.create_model("local-dir:DIR", pretrained=True)` reads it."""
    preprocess = spec.preprocess
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": num_features,
        "pretrained_cfg": {
            "input_size": [preprocess.channels, spec.image_size, spec.image_size],
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_fraction,
            "crop_mode": "squash" if preprocess.resize == "squash" else "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": 0,
        },
        "model_args": {name: value for name, value in arguments.items() if name not in ("num_classes", "in_chans")},
        "mcbeit": spec.model_dump(mode="json"),
    }


def model_card(manifest: ModelManifest, folder: str) -> str:
    """README.md: what the model is, how it was trained, how to use it, what was measured."""
    parts = [
        _header(manifest),
        f"# {manifest.name}",
        _what(manifest),
        _training(manifest),
        _use(manifest.graphs[0], folder),
        "## Measured",
        _measured(manifest),
        *(f"Note: {note}" for note in manifest.notes),
    ]
    return "\n\n".join(parts) + "\n"


def _use(graph: Graph, folder: str) -> str:
    return USE.format(usage=usage(graph, folder), folder=folder)


def usage(graph: Graph, folder: str) -> str:
    """The lines that embed an image with numpy, Pillow and onnxruntime."""
    resize = SQUASH if graph.spec.preprocess.resize == "squash" else SHORTER_SIDE
    return USAGE.format(folder=folder, file=graph.file, resize=resize)


def _header(manifest: ModelManifest) -> str:
    """What model hubs read."""
    licence = "unknown" if manifest.license is None else manifest.license
    lines = [f"license: {licence}", "library_name: timm", "tags:", "- image-feature-extraction", "- onnx", "- mcbeit"]
    return "\n".join(["---", *lines, "---"])


def _what(manifest: ModelManifest) -> str:
    spec = manifest.graphs[0].spec
    pooling = {
        "mean": "the mean of the patch tokens",
        "cls": "the cls token",
        "cls+mean": "the cls token and the mean of the patch tokens, one after the other",
        "head": "what the model's own head makes",
        "gem": "the generalised mean (power 3) of the patch tokens",
    }[spec.pooling]
    normed = "after" if spec.final_norm else "without"
    sizes = ", ".join(f"{graph.spec.image_size} ({graph.file})" for graph in manifest.graphs)
    rows = [
        ("source", f"`{manifest.source}`"),
        ("image size", sizes),
        ("embedding", f"{spec.dim} numbers: {pooling} of layer {spec.layer} of {spec.num_layers}, {normed} its norm"),
        ("whitening", "none" if spec.whitening is None else spec.whitening[:12]),
        ("compare by", "cosine; divide by the length first, the graph does not"),
        ("patch tokens", f"{spec.grid[0]} x {spec.grid[1]} of {spec.patch_dim} numbers"),
        ("weights", spec.precision),
        ("licence of the weights", manifest.license or "not said by who exported it"),
        ("fingerprint", f"`{spec.fingerprint}`"),
    ]
    return table(("", ""), rows)


def _training(manifest: ModelManifest) -> str:
    values = manifest.training
    if values is None:
        return "## Training\n\nNot known: the weights came without the run that made them."
    optim, objective = values.get("optim", {}), values.get("objective", {})
    rows = [
        ("images", f"`{values.get('data', {}).get('source')}`"),
        *((key, str(optim[key])) for key in ("epochs", "steps", "batch_size", "lr") if optim.get(key) is not None),
        *((key, str(value)) for key, value in objective.items()),
    ]
    told = "## Training\n\nPretrained without labels by mc-BEiT; the whole config is in manifest.json."
    return f"{told}\n\n{table(('', ''), rows)}"


def _measured(manifest: ModelManifest) -> str:
    parts = [f"On {manifest.machine}; {manifest.parity_images}."]
    for graph in manifest.graphs:
        parts += [f"`{graph.file}` against the model in torch fp32:", table(*parity_table(graph))]
        if graph.speed:
            parts += ["Images per second, measured in turn:", table(*speed_table(graph))]
    return "\n\n".join(parts)


def parity_table(graph: Graph) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Header and rows."""
    header = ("batch", "images", "min cosine", "mean cosine", "min cosine of patches", "recall@10")
    rows = [
        (
            str(one.batch_size),
            str(one.num_images),
            f"{one.min_cosine:.7f}",
            f"{one.mean_cosine:.7f}",
            f"{one.min_patch_cosine:.7f}",
            "" if one.recall_at_10 is None else f"{one.recall_at_10:.3f}",
        )
        for one in graph.parity
    ]
    return header, rows


def speed_table(graph: Graph) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Header and rows: a column per batch size."""
    sizes = sorted({speed.batch_size for speed in graph.speed})
    found = {(speed.runtime, speed.batch_size): f"{speed.images_per_second:.1f}" for speed in graph.speed}
    names = list(dict.fromkeys(speed.runtime for speed in graph.speed))
    rows = [(name, *(found.get((name, size), "") for size in sizes)) for name in names]
    return ("", *(f"batch {size}" for size in sizes)), rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
