"""`mcbeit train`: tokenizers and backbones."""

import click


@click.command()
@click.argument("preset", metavar="PRESET|FILE")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint; start it if there is none.")
@click.option("--print-config", is_flag=True, help="Print the resolved config with its cost, and stop.")
def command(preset: str, assignments: tuple[str, ...], resume: bool, print_config: bool) -> None:
    """Train a tokenizer or a backbone by a preset's name or a config file, with KEY=VALUE overrides.

    \b
    mcbeit train mcbeit-tiny data.source=~/photos       your images, one command
    mcbeit train demo --print-config                    what it is and what it costs
    mcbeit train runs/demo/config.yaml run=runs/again   repeat a run
    """
    from mcbeit.jobs import describe_job, load_job, run_job

    config = load_job(preset, assignments)
    if print_config:
        click.echo(describe_job(config), nl=False)
        return
    try:
        summary = run_job(config, resume=resume)
    except KeyboardInterrupt:
        click.echo(
            f"stopped; go on from the last checkpoint of {config.run} with the same command and --resume", err=True
        )
        raise
    click.echo(f"{config.run}: complete after {summary['step'] + 1:,} steps, loss {summary['loss']:.4f}")
