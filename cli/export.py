"""`mcbeit export`: a model as a folder that the service, other programs and other people can use."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcbeit.cli.tables import print_table

if TYPE_CHECKING:
    from mcbeit.model_folder import Graph


@click.command
@click.argument("model")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--force", is_flag=True, help="Replace the exported model that is there.")
def command(model: str, assignments: tuple[str, ...], out: Path, force: bool) -> None:
    """Export MODEL as ONNX, compare it with the model in torch, and write down what it is.

    MODEL is a run folder, a .safetensors file, a checkpoint of the official code (.pth) or timm:NAME. The folder holds
    model.onnx (uint8 images in, a batch of any size), the weights for timm, manifest.json and a model card. If the
    graph does not give the numbers of the model, nothing is written and the exit status is 1.

    \b
    mcbeit export runs/demo -o demo-onnx
    mcbeit export runs/demo -o demo-int8 precision=int8 license=apache-2.0
    mcbeit export checkpoint-799.pth -o beit image_size=224,384 pooling=cls+mean layers=6,9
    mcbeit export timm:tf_efficientnet_lite0 -o lite0 images.source=~/photos
    """
    from mcbeit.config import override, validate
    from mcbeit.errors import ParityError
    from mcbeit.export import ExportConfig, export_model

    config = validate(ExportConfig, override({}, assignments), origin="export")
    try:
        found = export_model(model, out, config, force=force)
    except ParityError as error:
        show(error.graph)
        click.echo(f"Error: {error}; nothing was written", err=True)
        raise click.exceptions.Exit(1) from error
    for graph in found.manifest.graphs:
        show(graph)
    spec = found.manifest.graphs[0].spec
    click.echo(f"{found.folder}: {spec.dim} numbers per image, fingerprint {spec.fingerprint[:12]}")


def show(graph: "Graph") -> None:
    """Print what was measured of a graph."""

    from mcbeit.model_card import parity_table, speed_table

    click.echo(f"{graph.file}, {graph.spec.precision}, against torch fp32:")
    print_table(*parity_table(graph))
    if graph.speed:
        click.echo("images per second:")
        print_table(*speed_table(graph))
