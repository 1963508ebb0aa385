"""Tables on stdout: drawn in a terminal, plain text elsewhere."""

from collections.abc import Sequence

import click


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is of names, the others of numbers."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        click.echo(plain_table([header, *rows]))
        return
    drawn = Table()
    for i, title in enumerate(header):
        drawn.add_column(title, justify="right" if i else "left")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
