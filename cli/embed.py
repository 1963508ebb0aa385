"""`mcbeit embed`: images into a file of vectors."""

import signal
import sys
from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.argument("source")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="OUT.npy, .parquet, .csv, .safetensors"
)
@click.option("--patches", is_flag=True, help="Write a vector per patch instead of one per image.")
@click.option("--resume", is_flag=True, help="Go on where a command was stopped or killed; start if there is nothing.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Spread it over so many processes of Ray.")
@click.option("--gpus-per-worker", type=click.FloatRange(0), help="Default: 1 where the cluster has GPUs.")
@click.option("--address", help="Of a Ray cluster, or auto. Default: this machine, a cluster of its own.")
def command(
    model: str,
    source: str,
    assignments: tuple[str, ...],
    out: Path,
    patches: bool,
    resume: bool,
    workers: int | None,
    gpus_per_worker: float | None,
    address: str | None,
) -> None:
    """Embed every image of a source, and write the vectors in the order of the images.

    MODEL is a run folder, a folder that `mcbeit export` wrote, a .safetensors file, a checkpoint of the official code
    (.pth), timm:NAME, the http:// address of `mcbeit serve`, or fake, which needs no model. SOURCE is whatever
    data.source of a run may be. KEY=VALUE sets pooling, layer, image_size, normalize, whitening, batch_size, threads,
    unreadable, data.* and more: see docs/embeddings.md.

    \b
    mcbeit embed runs/demo ~/photos -o photos.npy
    mcbeit embed runs/demo ~/photos -o photos.npy --resume         after a kill
    mcbeit embed exported 'shards/{000..127}.tar' -o shop.parquet data.num_workers=8
    mcbeit embed timm:vit_small_patch16_224 ~/photos -o a.csv pooling=cls layer=9
    mcbeit embed runs/demo ~/photos -o patches.npy --patches
    mcbeit embed runs/demo s3://bucket/photos -o big.npy --workers 8 --address auto
    """
    from mcbeit.embed import Output, embed
    from mcbeit.embed_task import EmbedConfig, Task, task_config
    from mcbeit.errors import ConfigError, Interrupted
    from mcbeit.ray_cluster import Scale

    if workers is None and (gpus_per_worker is not None or address is not None):
        raise ConfigError("--gpus-per-worker and --address say how Ray is used; name the --workers too")
    config = task_config(EmbedConfig, source, assignments)
    scale = None if workers is None else Scale(workers, workers, gpus_per_worker, address)
    output = Output(out.expanduser(), Task(model, config, patches), config.unreadable)
    try:
        click.echo(embed(output, resume=resume, scale=scale).sentence(out))
    except Interrupted as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(128 + (stopped.signal or signal.SIGINT))
