"""What `mcbeit weights` says of the files of a tokenizer, and the same tokenizer as our safetensors with a manifest."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mcbeit
from mcbeit.atomic import replacing, write_json
from mcbeit.errors import WeightsError
from mcbeit.file_hash import file_hash
from mcbeit.tokenizer_files import StoredTokenizer, read_tokenizer
from mcbeit.tokenizer_manifest import TokenizerManifest
from mcbeit.weight_account import count, some
from mcbeit.weight_conversion import check_place
from mcbeit.weight_manifest import manifest_path


def tokenizer_json(stored: StoredTokenizer) -> dict[str, Any]:
    """Kind, sizes and the account of every key, as JSON values."""
    return {
        "origin": str(stored.path),
        "tokenizer": stored.kind.name,
        "config": stored.config.model_dump(mode="json"),
        "parameters": num_parameters(stored),
        "account": stored.account.as_json(),
    }


def tokenizer_text(stored: StoredTokenizer) -> str:
    """The same in lines; keys of one fate and rule together."""
    sizes = ", ".join(f"{name} {value}" for name, value in stored.config.model_dump(mode="json").items())
    rows = [
        ("tokenizer", stored.kind.name),
        ("sizes", sizes),
        ("numbers", f"{num_parameters(stored):,} in {count(list(stored.tensors), 'tensor')} that are needed"),
        ("account", stored.account.summary()),
    ]
    lines = [str(stored.path), *(f"  {name:9}  {value}" for name, value in rows)]
    for entry, keys in stored.account.by_rule().items():
        lines.append(f"{entry.fate} {len(keys)}{f': {entry.rule}' if entry.rule else ''}")
        lines.append(f"  {some(keys)}")
    return "\n".join(lines)


def num_parameters(stored: StoredTokenizer) -> int:
    """Numbers in all tensors that the tokenizer needs."""
    return sum(value.numel() for value in stored.tensors.values())


def convert_tokenizer(source: str | Path, out: Path, layout: str, *, force: bool = False) -> list[str]:
    """Write a tokenizer to `out` as safetensors with a manifest, each number as it is; returns what was done.

    Raises WeightsError if the layout is not ours, if `out` exists without `force`, or as `read_tokenizer` does.
    """
    if layout != "mcbeit":
        raise WeightsError(f"a tokenizer can only be converted --to mcbeit, found {layout}")
    check_place(out, "mcbeit", force=force)
    stored = read_tokenizer(source)
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in stored.tensors.items()}
    try:
        manifest_path(out).unlink(missing_ok=True)  # so that at no moment it lies beside other weights
        with replacing(out) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        manifest = TokenizerManifest(
            sha256=file_hash(out),
            tokenizer=stored.kind.name,
            config=stored.config.model_dump(mode="json"),
            origin=stored.path.name,
            mcbeit=mcbeit.__version__,
        )
        write_json(manifest_path(out), manifest.model_dump(mode="json"))
    except OSError as error:
        raise WeightsError(f"'{out}' cannot be written: {error.strerror or error}") from error
    size = f"{count(list(tensors), 'tensor')}, {out.stat().st_size / 1e6:.1f} MB"
    left_out = [
        f"left out, {entry.rule}: {some(keys)}"
        for entry, keys in stored.account.by_rule().items()
        if entry.fate == "ignored"
    ]
    return [
        f"{stored.path} ({stored.kind.name}) -> {out} (mcbeit): {size}",
        *left_out,
        f"use it with: tokenizer.kind={stored.kind.name} tokenizer.path={out}",
    ]
