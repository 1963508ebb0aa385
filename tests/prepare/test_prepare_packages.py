"""Fetching packages with fake apt-get, dpkg-deb, dpkg-query and npm on PATH."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
from machine import Machine

from mcbeit.errors import DataError
from mcbeit.prepare import packages
from mcbeit.prepare.packages import (
    Package,
    check_sha256,
    debian_package,
    has_apt,
    npm_package,
    python_package,
)

FILES = {"usr/share/pets/cat.png": b"cat", "usr/share/pets/dog.png": b"dog"}


def test_debian_package__downloads_and_unpacks(machine: Machine, tmp_path: Path) -> None:
    machine.add_apt()
    machine.stock_debian("pets", FILES, version="2.1-3")
    package = debian_package("pets", tmp_path)
    assert str(package) == "Debian package pets 2.1-3"
    assert package.file("usr/share/pets/cat.png").read_bytes() == b"cat"
    assert [path.name for path in package.files("usr/share/pets/*.png")] == ["cat.png", "dog.png"]
    assert package.root.is_relative_to(tmp_path)
    assert len(machine.log()) == 1


def test_debian_package__fetches_lists_of_its_own_if_the_systems_are_stale(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.add_apt()
    machine.stock_debian("pets", FILES)
    (machine.shop / "stale").touch()
    debian_package("pets", tmp_path)
    first, update, second = machine.log()
    assert f"Dir::State={tmp_path}" not in first
    assert f"Dir::State={tmp_path}" in update
    assert f"Dir::State={tmp_path}" in second
    assert all(f"Dir::Cache={tmp_path}" in call for call in (first, update, second))
    assert capsys.readouterr().err == "fetching the Debian package pets\nfetching package lists\n"


def test_debian_package__tells_why_it_failed(machine: Machine, tmp_path: Path) -> None:
    machine.add_apt()
    with pytest.raises(DataError) as failure:
        debian_package("unicorn", tmp_path)
    assert str(failure.value) == (
        "cannot fetch the package unicorn: 'apt-get -q download unicorn' failed: "
        "E: Unable to locate package unicorn\ncheck the network and try again"
    )


def test_debian_package__tells_what_the_update_said(machine: Machine, tmp_path: Path) -> None:
    machine.add_apt()
    (machine.shop / "offline").touch()
    with pytest.raises(DataError, match=r"'apt-get update' said: W: Failed to fetch the list Connection failed$"):
        debian_package("unicorn", tmp_path)


def test_debian_package__a_network_that_hangs(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_apt()
    machine.add_command("apt-get", "import time\ntime.sleep(60)")
    monkeypatch.setattr(packages, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(DataError) as failure:
        debian_package("pets", tmp_path)
    assert "'apt-get -q download pets' failed: no end after 0.1 s" in str(failure.value)
    assert "'apt-get update' did not end in 0.1 s" in str(failure.value)


def test_debian_package__uses_an_installed_one(machine: Machine, tmp_path: Path) -> None:
    machine.add_installed("pets")
    assert debian_package("pets", tmp_path) == Package("Debian", "pets", "1.2-3", Path("/"))
    with pytest.raises(DataError, match="apt-get or dpkg-deb is not on this system"):
        debian_package("unicorn", tmp_path)


def test_has_apt__needs_both_commands(machine: Machine) -> None:
    assert not has_apt()
    machine.add_apt()
    assert has_apt()
    (machine.bin / "dpkg-deb").unlink()
    assert not has_apt()


def test_npm_package__downloads_and_unpacks(machine: Machine, tmp_path: Path) -> None:
    machine.add_npm()
    archive = machine.stock_npm("@shop/pets", "1.1.0", {"package/cat.webp": b"cat", "../outside": b"no"})
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "work").mkdir()
    package = npm_package("@shop/pets", "1.1.0", sha256=sha256, workspace=tmp_path / "work")
    assert str(package) == "npm package @shop/pets 1.1.0"
    assert package.file("package/cat.webp").read_bytes() == b"cat"
    assert not list(tmp_path.rglob("outside"))
    assert package.source("MIT", package.files("*.tgz")).files == {"shop-pets-1.1.0.tgz": sha256}


def test_npm_package__refuses_another_content(machine: Machine, tmp_path: Path) -> None:
    machine.add_npm()
    machine.stock_npm("pets", "1.1.0", {"package/cat.webp": b"dog"})
    with pytest.raises(
        DataError, match=r"pets-1.1.0.tgz of pets 1.1.0 is not the expected file: sha256 .* expected 00"
    ):
        npm_package("pets", "1.1.0", sha256="00", workspace=tmp_path)


def test_npm_package__tells_why_it_failed(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"npm package pets, and npm is not on this system\ninstall Node"):
        npm_package("pets", "1.1.0", sha256="00", workspace=tmp_path)
    machine.add_npm()
    with pytest.raises(DataError, match=r"cannot fetch the package pets: 'npm pack pets@1.1.0 .*404 Not Found"):
        npm_package("pets", "1.1.0", sha256="00", workspace=tmp_path)


def test_npm_package__a_command_that_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.add_command("npm", "")
    with pytest.raises(DataError, match=r"left 0 files \*.tgz, expected 1"):
        npm_package("pets", "1.1.0", sha256="00", workspace=tmp_path)


def test_python_package__is_found_without_import() -> None:
    package = python_package("pytest", "pytest")
    assert package.version == pytest.__version__
    spec = importlib.util.find_spec("pytest")
    assert spec is not None
    assert package.file("pytest/__init__.py") == Path(str(spec.origin))


def test_python_package__names_the_extra() -> None:
    with pytest.raises(DataError) as failure:
        python_package("unicorn-api", "unicorn_api")
    assert str(failure.value) == 'the Python package unicorn-api is not installed\npip install "mcbeit[emoji]"'


def test_package__tells_of_a_changed_layout(tmp_path: Path) -> None:
    package = Package("npm", "pets", "1.0", tmp_path)
    with pytest.raises(DataError, match=r"npm package pets 1.0 has no file cat.png"):
        package.file("cat.png")
    with pytest.raises(DataError, match=r"npm package pets 1.0 has no files \*.png"):
        package.files("*.png")


def test_check_sha256(tmp_path: Path) -> None:
    (tmp_path / "cat").write_bytes(b"cat")
    check_sha256(tmp_path / "cat", hashlib.sha256(b"cat").hexdigest(), package="pets")
    with pytest.raises(DataError, match="cat of pets is not the expected file"):
        check_sha256(tmp_path / "cat", "00", package="pets")
