"""`mcbeit data`: what is in a source of images, and ready-made image folders."""

import json
import time
from pathlib import Path

import click


@click.group
def command() -> None:
    """Check and measure images, or prepare ready-made image folders."""


@command.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Check the hash of every file of a folder that is already there.")
def prepare(name: str, out: Path, verify: bool) -> None:
    """Build an image folder from free packages.

    \b
    NAME is
      fashion-mnist        70 000 grey images, 10 classes
      emoji                about 30 000 synthetic colour images, 9 classes
      emoji-styles         the same emoji by three hands, on white
      photos               about 6 000 crops of 26 photographs
      emoji-coco           EmojiCOCO (synthetic composites): 2 400 scenes
                           with boxes and masks of 16 classes, laid out as
                           COCO 2017
      emoji-coco-agnostic  EmojiCOCO, class-agnostic (synthetic composites):
                           the same with one class, emoji
      emoji-ade            EmojiADE (synthetic composites): the same scenes
                           with a label for every pixel, laid out as
                           ADEChallengeData2016
      emoji-ade-agnostic   EmojiADE, class-agnostic (synthetic composites):
                           the same with the labels photograph and emoji

    The images lie at OUT/{train,val}/CLASS/FILE, those of the last four as the layouts want it. A whole folder is left
    as it is, a damaged one is built again.

    Example: mcbeit data prepare fashion-mnist data/fashion-mnist
    """
    from mcbeit.prepare import DATA_SETS
    from mcbeit.prepare import prepare as prepare_data_set

    start = time.monotonic()
    state, manifest = prepare_data_set(name, out, verify=verify)
    what, seconds = DATA_SETS[name].describe(manifest.counts), time.monotonic() - start
    click.echo(f"{name}: {state} in {out}, {what} ({seconds:.1f} s)")


@command.command()
@click.argument("source")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--pixels", is_flag=True, help="Also find images with the same pixels in files that are not the same.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for machines.")
def check(source: str, assignments: tuple[str, ...], pixels: bool, as_json: bool) -> None:
    """Read every image once and tell what is there, and what is wrong.

    SOURCE is whatever data.source of a run may be; KEY=VALUE sets keys of its section data. Counts, formats, sizes,
    labels, corrupt files, damaged shards and duplicates are printed. The exit status is 1 if more images cannot be
    read than data.max_corrupt_fraction allows.

    \b
    mcbeit data check ~/photos
    mcbeit data check 'shards/train-{000..127}.tar' data.max_corrupt_fraction=0
    mcbeit data check tiles data.channels=5 --json
    """
    from mcbeit.check import check_source, describe
    from mcbeit.scan import scan_config

    found = check_source(scan_config(source, assignments), pixels=pixels)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in describe(found):
            click.echo(line)
    if not found.is_usable:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("source")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--images", type=click.IntRange(min=1), help="Read only so many images, drawn at random.")
def stats(source: str, assignments: tuple[str, ...], images: int | None) -> None:
    """Measure mean and standard deviation of every channel, as lines to paste into a config.

    SOURCE is whatever data.source of a run may be; KEY=VALUE sets keys of its section data.

    \b
    mcbeit data stats tiles data.channels=5
    mcbeit data stats ~/photos --images 2000
    """
    from mcbeit.channel_stats import measure_channels
    from mcbeit.scan import scan_config

    click.echo(measure_channels(scan_config(source, assignments), num_images=images).as_yaml(), nl=False)
