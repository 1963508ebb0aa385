"""Writing weights in another layout: whole or not at all, bit for bit, and nothing lost without a word."""

from pathlib import Path

import torch
from safetensors.torch import save_file

import mcbeit
from mcbeit.atomic import replacing, write_json
from mcbeit.errors import WeightsError
from mcbeit.file_hash import file_hash
from mcbeit.weight_account import count, some
from mcbeit.weight_layouts import Arrangement, arrange, timm_call
from mcbeit.weight_manifest import WeightsManifest, manifest_path, remove_manifest
from mcbeit.weights import LAYOUTS, Layout, Weights, read_weights

SAFE = ".safetensors"
PICKLED = (".pth", ".pt", ".bin")
SUFFIXES: dict[Layout, tuple[str, ...]] = {
    "mcbeit": (SAFE,),
    "timm": (SAFE, *PICKLED),
    "official-pretrain": PICKLED,
    "official-finetune": PICKLED,
}


def convert_weights(
    source: str | Path,
    out: Path,
    layout: str,
    *,
    force: bool = False,
    image_size: int | None = None,
    num_heads: int | None = None,
) -> list[str]:
    """Write the weights of `source` to `out` in a layout, each number as it is; returns what a person should hear.

    `image_size` resizes positions first. Raises WeightsError if the layout or the suffix of `out` is unknown, if `out`
    exists and `force` is not given, if the weights do not fit the layout, or as `read_weights` does.
    """
    known = _layout(layout)
    check_place(out, known, force=force)
    weights = read_weights(source, num_heads=num_heads)
    if image_size is not None:
        weights = weights.resized(image_size)
    arrangement = arrange(weights, known)
    sizes = (weights.model, weights.image_size, weights.num_classes, weights.channels)
    call = timm_call(*sizes) if known == "timm" else None
    try:
        _write(arrangement, out, known, note=None if call is None else str(call))
        if known == "mcbeit":
            write_json(manifest_path(out), _manifest(weights, out).model_dump(mode="json"))
    except OSError as error:
        raise WeightsError(f"'{out}' cannot be written: {error.strerror or error}") from error
    return [*_told(weights, arrangement, out, known), *([] if call is None else [f"load into: {call}"])]


def _layout(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise WeightsError(f"there is no layout '{name}' of weights; choose {', '.join(LAYOUTS)}")


def check_place(out: Path, layout: Layout, *, force: bool) -> None:
    if out.suffix not in SUFFIXES[layout]:
        raise WeightsError(f"weights of layout {layout} end in {' or '.join(SUFFIXES[layout])}, found '{out}'")
    if not out.absolute().parent.is_dir():
        raise WeightsError(f"the folder of '{out}' does not exist; make it first")
    for path in [out, *([manifest_path(out)] if layout == "mcbeit" else [])]:
        if path.is_dir() or (path.exists() and not force):
            raise WeightsError(f"'{path}' exists; choose another name, or overwrite it with --force")


def _write(arrangement: Arrangement, out: Path, layout: Layout, *, note: str | None) -> None:
    """A file that was there loses its manifest first, so that at no moment one lies beside other weights."""
    # copies, because torch saves all of the memory that a part of it lies in
    tensors = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in arrangement.tensors.items()
    }
    with replacing(out) as partial:
        if out.suffix == SAFE:
            save_file(tensors, partial, metadata={"format": "pt", **({} if note is None else {"timm": note})})
        else:
            torch.save(tensors if layout == "timm" else {"model": tensors}, partial)
        remove_manifest(out)


def _manifest(weights: Weights, out: Path) -> WeightsManifest:
    return WeightsManifest(
        sha256=file_hash(out),
        model=weights.model,
        image_size=weights.image_size,
        preprocess=weights.preprocess,
        vocab_size=weights.vocab_size,
        num_classes=weights.num_classes,
        origin=f"{Path(weights.origin).name} ({weights.layout})",
        mcbeit=mcbeit.__version__,
    )


def _told(weights: Weights, arrangement: Arrangement, out: Path, layout: Layout) -> list[str]:
    size = f"{count(list(arrangement.tensors), 'tensor')}, {out.stat().st_size / 1e6:.1f} MB"
    lines = [f"{weights.origin} ({weights.layout}) -> {out} ({layout}): {size}"]
    for entry, keys in arrangement.account.by_rule().items():
        if entry.fate != "ignored":
            lines.append(f"{entry.fate}, {entry.rule}: {some(keys)}")
    if arrangement.left_out:
        lines.append(f"left out, {layout} has no place for it: {some(arrangement.left_out)}")
    if arrangement.missing:
        lines.append(f"not in it, the file has none: {some(arrangement.missing)}")
    return lines
