"""`mcbeit weights`: what a file of weights holds, and the same weights in another layout."""

import json
from pathlib import Path

import click


@click.group
def command() -> None:
    """Look into files of weights and convert them.

    FILE is a run folder, a .safetensors file, a checkpoint of the official code (.pth, .pt, .bin), or timm:NAME.
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
    from mcbeit.weight_table import describe, text
    from mcbeit.weights import read_weights

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
    left out. mcbeit writes a manifest beside OUT.

    \b
    mcbeit weights convert checkpoint-799.pth beit.safetensors --to mcbeit
    mcbeit weights convert runs/demo demo.safetensors --to timm
    """
    from mcbeit.weight_conversion import convert_weights

    for line in convert_weights(file, out, layout, force=force, image_size=image_size, num_heads=num_heads):
        click.echo(line)
