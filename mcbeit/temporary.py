"""Temporary folders that name the process they belong to, so that those of killed processes are found and removed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder `parent/mcbeit-NAME-PID-...` for as long as it is used; the parent is the system's by default.

    Those that processes of this machine left behind when they were killed are removed first (Linux).
    """
    parent = parent or Path(tempfile.gettempdir())
    for left in parent.glob(f"mcbeit-{name}-*"):
        owner = left.name.removeprefix(f"mcbeit-{name}-").partition("-")[0]
        if owner.isdigit() and Path("/proc/self").exists() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"mcbeit-{name}-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
