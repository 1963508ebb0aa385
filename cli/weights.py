"""`mcbeit weights`: what a file of weights holds, and the same weights in another layout."""

import json
from pathlib import Path

import click


@click.group
def command() -> None:
    """Look into files of weights and convert them.

    FILE is a run folder, a .safetensors file, a checkpoint of the official code (.pth, .pt, .bin), timm:NAME, or a
    tokenizer: the folder of a VQGAN (model.yaml and last.ckpt), encoder.pkl, vqkd_*.pth. Detectors can be shown.
    """


@command.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every key instead of a table.")
@click.option("--image-size", type=click.IntRange(min=1), help="Pixels; what would be resized for that size.")
@click.option("--num-heads", type=click.IntRange(min=1), help="Attention heads, where the file does not tell them.")
def show(file: str, as_json: bool, image_size: int | None, num_heads: int | None) -> None:
    """Show what is in FILE and what loading it makes of every key: loaded, converted, resized, ignored by rule.

    Nothing of the file is executed. A key that no rule knows is an error.

    \b
    mcbeit weights show checkpoint-799.pth
    mcbeit weights show runs/demo --json
    """
    from mcbeit.detection import detector_table
    from mcbeit.detection.loading import holds_detector, load_detector
    from mcbeit.tokenizer_conversion import tokenizer_json, tokenizer_text
    from mcbeit.tokenizer_files import is_tokenizer, read_tokenizer
    from mcbeit.weight_table import describe, text
    from mcbeit.weights import read_weights

    if is_tokenizer(file):
        refuse_backbone_options(image_size, num_heads, "a tokenizer")
        stored = read_tokenizer(file)
        click.echo(json.dumps(tokenizer_json(stored), indent=2) if as_json else tokenizer_text(stored))
        return
    if holds_detector(file):
        refuse_backbone_options(image_size, num_heads, "a detector")
        loaded = load_detector(file)
        told = json.dumps(detector_table.as_json(loaded), indent=2) if as_json else detector_table.text(loaded)
        click.echo(told)
        return
    description = describe(read_weights(file, num_heads=num_heads), image_size=image_size)
    click.echo(json.dumps(description.as_json(), indent=2) if as_json else text(description))


@command.command()
@click.argument("file")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "layout", required=True, help="mcbeit, timm, official-pretrain or official-finetune.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@click.option("--image-size", type=click.IntRange(min=1), help="Pixels; resize the positions to it.")
@click.option("--num-heads", type=click.IntRange(min=1), help="Attention heads, where the file does not tell them.")
def convert(file: str, out: Path, layout: str, force: bool, image_size: int | None, num_heads: int | None) -> None:
    """Write the weights of FILE to OUT in another layout, bit for bit.

    OUT ends in .safetensors (mcbeit, timm) or in .pth (timm, official). What the layout has no place for is told and
    left out. mcbeit writes a manifest beside OUT. Tokenizers can be converted to mcbeit only.

    \b
    mcbeit weights convert checkpoint-799.pth beit.safetensors --to mcbeit
    mcbeit weights convert runs/demo demo.safetensors --to timm
    mcbeit weights convert vqgan_gumbel_f8 vqgan.safetensors --to mcbeit
    """
    from mcbeit.tokenizer_conversion import convert_tokenizer
    from mcbeit.tokenizer_files import is_tokenizer
    from mcbeit.weight_conversion import convert_weights

    if is_tokenizer(file):
        refuse_backbone_options(image_size, num_heads, "a tokenizer")
        lines = convert_tokenizer(file, out, layout, force=force)
    else:
        lines = convert_weights(file, out, layout, force=force, image_size=image_size, num_heads=num_heads)
    for line in lines:
        click.echo(line)


def refuse_backbone_options(image_size: int | None, num_heads: int | None, what: str) -> None:
    """Raise UsageError if an option was given that says nothing of a tokenizer or a detector."""
    if image_size is not None or num_heads is not None:
        raise click.UsageError(f"--image-size and --num-heads are for backbones; FILE is {what}")
