"""`mcbeit serve`: exported models as an HTTP service."""

import click


@click.command()
@click.argument("words", metavar="MODEL_DIR... [KEY=VALUE]...", nargs=-1)
@click.option("--plain", is_flag=True, help="One process under uvicorn, without Ray.")
@click.option("--fake", is_flag=True, help="An encoder without a model: to try clients out.")
@click.option("--print-config", is_flag=True, help="Print the config and stop.")
def command(words: tuple[str, ...], plain: bool, fake: bool, print_config: bool) -> None:
    """Serve models over HTTP: images in, vectors out, for the clients of OpenAI, KServe, Weaviate, Cohere and more.

    MODEL_DIR is a folder that `mcbeit export` wrote; NAME=MODEL_DIR serves it under another name. KEY=VALUE sets port,
    host, threads, batch.*, limits.*, urls.*, indexes and more: see docs/serving.md. It listens at 127.0.0.1:8000 unless
    told otherwise; /demo is a page to try it, /docs lists all routes.

    \b
    mcbeit serve exported --plain
    mcbeit serve --fake --plain port=9000
    mcbeit serve exported shop=other-model ray.replicas=2
    MCBEIT_API_KEYS=secret mcbeit serve exported host=0.0.0.0
    """
    from mcbeit.config import dump
    from mcbeit.serve.command import config_of, run_plain
    from mcbeit.serve.on_ray import run_on_ray

    config = config_of(words, fake=fake)
    if print_config:
        click.echo(dump(config), nl=False)
        return
    run = run_plain if plain else run_on_ray
    run(config, told=lambda line: click.echo(line, err=True))
