"""The examples of our documents, run as a reader would, against a service of a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8000"  # that the documents name
PROGRAMS = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}


def examples(document: str, title: str) -> list[tuple[str, str]]:
    """The blocks of code under a title that can be run, with the language of each."""
    text = (ROOT / document).read_text(encoding="utf-8")
    level, _, rest = re.split(rf"^(#+) ({re.escape(title)})\n", text, maxsplit=1, flags=re.MULTILINE)[1:]
    section = re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```(sh|python)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def run_example(example: tuple[str, str], folder: Path, address: str) -> str:
    """What one prints. `folder` is where it runs, `address` takes the place of the one in the document."""
    language, text = example
    command = [*PROGRAMS[language], text.replace(ADDRESS, address)]
    environment = {**os.environ, "no_proxy": "*"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
