"""`mcbeit train`: tokenizers, backbones and classifiers."""

import signal
import sys

import click


@click.command()
@click.argument("preset", metavar="PRESET|FILE")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint; start it if there is none.")
@click.option("--workers", metavar="N|MIN-MAX", help="Under Ray Train with so many processes; elastic with MIN-MAX.")
@click.option("--gpus-per-worker", type=click.FloatRange(0), help="Default: 1 where the cluster has GPUs.")
@click.option("--address", help="Of a Ray cluster, or auto. Default: this machine, a cluster of its own.")
@click.option("--print-config", is_flag=True, help="Print the resolved config with its cost, and stop.")
def command(
    preset: str,
    assignments: tuple[str, ...],
    resume: bool,
    workers: str | None,
    gpus_per_worker: float | None,
    address: str | None,
    print_config: bool,
) -> None:
    """Train a tokenizer or a backbone, or finetune one, by a preset's name or a config file, with KEY=VALUE overrides.

    The name of a job (pretrain, finetune, segmentation, detection, ...) is that job with all its defaults.

    \b
    mcbeit train mcbeit-tiny data.source=~/photos       your images, one command
    mcbeit train demo --print-config                    what it is and what it costs
    mcbeit train runs/demo/config.yaml run=runs/again   repeat a run
    mcbeit train finetune-demo init=runs/demo           a classifier from a backbone and labelled images
    mcbeit train segmentation-demo init=runs/emoji      a class for every pixel; detection-demo: boxes and masks
    mcbeit train runs/coco/config.yaml init=runs/coco run=runs/mine data.source=~/mine   go on with other classes
    mcbeit train demo --workers 2                       two processes under Ray Train
    """
    from mcbeit.distributed import launch, speaks
    from mcbeit.errors import ConfigError, Interrupted
    from mcbeit.jobs import describe_job, load_job
    from mcbeit.ray_cluster import Scale

    config = load_job(preset, assignments)
    if print_config:
        click.echo(describe_job(config), nl=False)
        return
    if workers is None and (gpus_per_worker is not None or address is not None):
        raise ConfigError("--gpus-per-worker and --address say how Ray Train is used; name the --workers too")
    scale = None if workers is None else Scale.parse(workers, gpus_per_worker, address)
    try:
        summary = launch(config, resume=resume, scale=scale)
    except Interrupted as stopped:
        if speaks():
            click.echo(str(stopped), err=True)
        sys.exit(128 + (stopped.signal or signal.SIGINT))
    except KeyboardInterrupt:
        click.echo(
            f"stopped; go on from the last checkpoint of {config.run} with the same command and --resume", err=True
        )
        raise
    if speaks():
        accuracy = f", top-1 {summary['top1']:.4f}" if "top1" in summary else ""
        click.echo(f"{config.run}: complete after {summary['step'] + 1:,} steps, loss {summary['loss']:.4f}{accuracy}")
