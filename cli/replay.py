"""`mcbeit replay`: one step of a run again."""

import math
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), help="Default: the last one that was skipped.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(run: Path, step: int | None, as_json: bool) -> None:
    """Repeat one step of the pretraining RUN and tell what is not finite in it; changes nothing.

    Steps whose loss or gradient is not finite are skipped and listed in RUN/skipped.jsonl.
    """
    import json

    from mcbeit.atomic import finite
    from mcbeit.replay import replay, report

    found = replay(run, step)
    if as_json:
        click.echo(json.dumps(finite(report(found)), indent=2))
        return
    click.echo(f"step {found.step}, reached from the checkpoint of step {found.from_step}")
    click.echo(f"loss {found.loss:g}, gradient norm {found.gradient_norm:g}")
    for image in found.images:
        click.echo(f"  {image.loss:<12g} {image.name}" + ("" if math.isfinite(image.loss) else "   <- not finite"))
    for name in found.bad_parameters:
        click.echo(f"  the gradient of {name} is not finite")
