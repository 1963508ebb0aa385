"""`mcbeit data`: ready-made image folders."""

import time
from pathlib import Path

import click


@click.group
def command() -> None:
    """Prepare ready-made image folders."""


@command.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Check the hash of every file of a folder that is already there.")
def prepare(name: str, out: Path, verify: bool) -> None:
    """Build an image folder from free packages.

    The images lie at OUT/{train,val}/CLASS/FILE. NAME is fashion-mnist (70 000 grey images, 10 classes), emoji
    (about 30 000 synthetic colour images, 9 classes) or photos (about 6 000 crops of 26 photographs). A whole folder
    is left as it is, a damaged one is built again.

    Example: mcbeit data prepare fashion-mnist data/fashion-mnist
    """
    from mcbeit.prepare import prepare as prepare_data_set

    start = time.monotonic()
    state, manifest = prepare_data_set(name, out, verify=verify)
    totals = " + ".join(f"{sum(classes.values())} {split}" for split, classes in manifest.counts.items())
    num_classes = len(set().union(*manifest.counts.values()))
    seconds = time.monotonic() - start
    click.echo(f"{name}: {state} in {out}, {totals} images, {num_classes} classes ({seconds:.1f} s)")
