"""`mcbeit whiten`: what makes embeddings have no preferred direction."""

from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.argument("source")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
@click.option("--dim", type=click.IntRange(min=1), metavar="N", help="Keep the N axes of most variance. Default: all.")
def command(model: str, source: str, assignments: tuple[str, ...], out: Path, dim: int | None) -> None:
    """Learn the whitening of a model's embeddings from images like those that it is for.

    Give it to `mcbeit embed` or `mcbeit export` as whitening=OUT, with the same MODEL and the same choices of pooling,
    layer, image_size and so on: for others it is refused. Take many more images than the embedding has numbers.

    \b
    mcbeit whiten runs/demo ~/photos -o photos.whitening.safetensors
    mcbeit whiten runs/demo ~/photos -o short.safetensors --dim 64 pooling=mean layer=9
    mcbeit embed runs/demo ~/photos -o white.npy whitening=photos.whitening.safetensors
    """
    from mcbeit.embed_task import StreamConfig, task_config
    from mcbeit.whiten import whiten

    found, count = whiten(model, task_config(StreamConfig, source, assignments), out.expanduser(), dim=dim)
    width, axes = found.matrix.shape
    click.echo(f"{out}: {width} numbers of an embedding become {axes}, learned from {count} images")
