"""A machine of our own: only the commands that a test asks for are on PATH, and they serve packages from a folder."""

import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

APT_GET = """
import pathlib, shutil, sys
shop, asked = pathlib.Path({shop!r}), sys.argv[-1]
with open(shop / "log", "a") as log:
    log.write("apt-get " + " ".join(sys.argv[1:]) + chr(10))
if asked == "update":
    (shop / "updated").touch()
    (shop / "offline").exists() and sys.exit("W: Failed to fetch the list  Connection failed")
elif (shop / "stale").exists() and not (shop / "updated").exists() or not list(shop.glob(asked + "_*.deb")):
    sys.exit("E: Unable to locate package " + asked)
else:
    shutil.copy(next(shop.glob(asked + "_*.deb")), ".")
"""
DPKG_DEB = """
import json, pathlib, sys
package = json.loads(pathlib.Path(sys.argv[2]).read_text())
if sys.argv[1] == "-f":
    print(package["version"])
else:
    for name, content in package["files"].items():
        path = pathlib.Path(sys.argv[3], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes.fromhex(content))
"""
DPKG_QUERY = """
import sys
print("installed 1.2-3") if sys.argv[-1] == {name!r} else sys.exit("no packages found")
"""
NPM = """
import os, pathlib, shutil, sys
shop = pathlib.Path({shop!r})
pathlib.Path(os.environ["npm_config_cache"]).mkdir()
name, _, version = sys.argv[2].rpartition("@")
archive = shop / (name.replace("@", "").replace("/", "-") + "-" + version + ".tgz")
shutil.copy(archive, ".") if archive.exists() else sys.exit("npm error 404 Not Found")
"""


class Machine:
    """Commands and packages. A fake Debian archive is a JSON file that the fake dpkg-deb can open."""

    def __init__(self, root: Path) -> None:
        self.bin, self.shop = root / "bin", root / "shop"
        self.bin.mkdir()
        self.shop.mkdir()

    def add_command(self, name: str, source: str) -> None:
        """A Python program on PATH; it starts without site packages, so quickly."""
        path = self.bin / name
        path.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
        path.chmod(0o755)

    def add_apt(self) -> None:
        self.add_command("apt-get", APT_GET.format(shop=str(self.shop)))
        self.add_command("dpkg-deb", DPKG_DEB)

    def add_npm(self) -> None:
        self.add_command("npm", NPM.format(shop=str(self.shop)))

    def add_installed(self, name: str) -> None:
        self.add_command("dpkg-query", DPKG_QUERY.format(name=name))

    def stock_debian(self, name: str, files: Mapping[str, bytes], version: str = "1.0-1") -> None:
        content = {"version": version, "files": {path: content.hex() for path, content in files.items()}}
        (self.shop / f"{name}_{version}_all.deb").write_text(json.dumps(content), encoding="utf-8")

    def stock_npm(self, name: str, version: str, files: Mapping[str, bytes]) -> Path:
        archive = self.shop / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return archive

    def log(self) -> list[str]:
        """The calls of apt-get."""
        path = self.shop / "log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
