"""`python -m mcbeit.serve.openapi FILE` writes what `/docs` shows; with --check: does the file say the same?"""

import json
import sys
from pathlib import Path

from mcbeit.serve.app import build_app, openapi
from mcbeit.serve.config import ServeConfig


def text() -> str:
    """The schema of all routes."""
    schema = openapi(build_app(ServeConfig(models=("fake",))))
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def main(words: list[str]) -> int:
    """Write the file, or compare it; 1 if it is not what it should be."""
    (path,) = [Path(word) for word in words if word != "--check"]
    if "--check" in words:
        return int(path.read_text(encoding="utf-8") != text())
    path.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
