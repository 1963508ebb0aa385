"""The life of a prepared folder: built once, checked, built again when damaged, never in place of anything else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mcbeit.errors import DataError
from mcbeit.prepare.folder import (
    Built,
    DataSet,
    Manifest,
    Source,
    count_files,
    prepare_folder,
    split_of,
    tree_sha256,
)

SOURCE = Source(registry="Debian", package="pets", version="1.0-1", licence="MIT", files={"cat": "ab" * 32})
COUNTS = {"train": {"cat": 3, "dog": 2}, "val": {"cat": 1, "dog": 1}}


def build(tree: Path, workspace: Path) -> Built:
    (workspace / "download").write_bytes(b"large")
    for split, classes in COUNTS.items():
        for name, count in classes.items():
            (tree / split / name).mkdir(parents=True)
            for index in range(count):
                (tree / split / name / f"{index}.png").write_bytes(f"{split} {name} {index}".encode())
    return Built([SOURCE], "# Pets\n\nby nobody\n")


PETS = DataSet(name="pets", builder_version=1, seed=7, build=build)


def with_build(function: Callable[[Path, Path], Built]) -> DataSet:
    return DataSet(name="pets", builder_version=1, seed=7, build=function)


def never(tree: Path, workspace: Path) -> Built:
    raise AssertionError("there was nothing to build")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_folder__builds_tree_manifest_and_attribution(tmp_path: Path) -> None:
    state, manifest = prepare_folder(PETS, tmp_path / "deep" / "pets")
    out = tmp_path / "deep" / "pets"
    assert state == "built"
    assert (out / "train" / "dog" / "1.png").read_bytes() == b"train dog 1"
    assert (out / "ATTRIBUTION.md").read_text() == "# Pets\n\nby nobody\n"
    assert Manifest(**json.loads((out / "manifest.json").read_text())) == manifest
    assert manifest == Manifest(
        name="pets", builder_version=1, seed=7, sources=[SOURCE], counts=COUNTS, sha256=tree_sha256(out)
    )
    assert [path.name for path in out.parent.iterdir()] == ["pets"]


def test_prepare_folder__fills_an_empty_folder(tmp_path: Path) -> None:
    assert prepare_folder(PETS, tmp_path).state == "built"
    assert count_files(tmp_path) == COUNTS


@pytest.mark.parametrize("verify", [False, True])
def test_prepare_folder__is_content_with_a_whole_folder(tmp_path: Path, verify: bool) -> None:
    first = prepare_folder(PETS, tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / ".thumbnails").touch()
    (tmp_path / "pets" / ".DS_Store").touch()
    second = prepare_folder(with_build(never), tmp_path / "pets", verify=verify)
    assert second.state == "already there"
    assert second.manifest == first.manifest


def test_prepare_folder__gives_the_same_hash_again(tmp_path: Path) -> None:
    assert prepare_folder(PETS, tmp_path / "a").manifest == prepare_folder(PETS, tmp_path / "b").manifest


def remove_one(out: Path) -> None:
    (out / "train" / "cat" / "0.png").unlink()


def remove_split(out: Path) -> None:
    for path in sorted((out / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (out / "val").rmdir()


def remove_attribution(out: Path) -> None:
    (out / "ATTRIBUTION.md").unlink()


@pytest.mark.parametrize("damage", [remove_one, remove_split, remove_attribution])
def test_prepare_folder__builds_a_damaged_folder_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    first = prepare_folder(PETS, tmp_path / "pets")
    damage(tmp_path / "pets")
    second = prepare_folder(PETS, tmp_path / "pets")
    assert second.state == "rebuilt"
    assert second.manifest == first.manifest
    assert tree_sha256(tmp_path / "pets") == first.manifest.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]
    assert "building it again" in capsys.readouterr().err


def test_prepare_folder__verify_finds_a_changed_file(tmp_path: Path) -> None:
    prepare_folder(PETS, tmp_path / "pets")
    (tmp_path / "pets" / "val" / "dog" / "0.png").write_bytes(b"val cat 0")
    assert prepare_folder(PETS, tmp_path / "pets").state == "already there"
    assert prepare_folder(PETS, tmp_path / "pets", verify=True).state == "rebuilt"
    assert (tmp_path / "pets" / "val" / "dog" / "0.png").read_bytes() == b"val dog 0"


def test_prepare_folder__a_newer_builder_builds_again(tmp_path: Path) -> None:
    prepare_folder(PETS, tmp_path / "pets")
    newer = DataSet(name="pets", builder_version=2, seed=7, build=build)
    assert prepare_folder(newer, tmp_path / "pets").state == "rebuilt"


FOREIGN = {
    "no manifest": {"thesis.txt": "years of work"},
    "a manifest of something else": {"manifest.json": '{"name": "web app"}'},
    "a manifest that is no JSON": {"manifest.json": "hello"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
def test_prepare_folder__refuses_a_foreign_folder(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="is not empty and was not made by 'mcbeit data prepare'\nit was left as it is"):
        prepare_folder(with_build(never), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["notes.txt", "train/horse", "extra/cat.png"])
def test_prepare_folder__refuses_to_replace_files_that_were_added(tmp_path: Path, place: str) -> None:
    prepare_folder(PETS, tmp_path / "pets")
    (tmp_path / "pets" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "pets" / place).write_text("mine")
    remove_one(tmp_path / "pets")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f"also holds files of yours: {place.removesuffix('/cat.png')}"):
        prepare_folder(PETS, tmp_path / "pets")
    assert contents(tmp_path) == before


def test_prepare_folder__refuses_another_data_set(tmp_path: Path) -> None:
    prepare_folder(PETS, tmp_path / "pets")
    other = DataSet(name="cars", builder_version=1, seed=7, build=never)
    with pytest.raises(DataError, match="holds the data set 'pets', not 'cars'"):
        prepare_folder(other, tmp_path / "pets")


def test_prepare_folder__refuses_a_file_and_a_mount_point(tmp_path: Path) -> None:
    (tmp_path / "pets").touch()
    with pytest.raises(DataError, match="is a file"):
        prepare_folder(with_build(never), tmp_path / "pets")
    with pytest.raises(DataError, match="/ is a mount point"):
        prepare_folder(with_build(never), Path("/"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_prepare_folder__an_interrupted_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(tree: Path, workspace: Path) -> Built:
        build(tree, workspace)
        raise error

    with pytest.raises(error):
        prepare_folder(with_build(interrupted), tmp_path / "pets")
    assert list(tmp_path.iterdir()) == []


def test_prepare_folder__an_interrupted_rebuild_leaves_the_old_folder(tmp_path: Path) -> None:
    def interrupted(tree: Path, workspace: Path) -> Built:
        raise KeyboardInterrupt

    prepare_folder(PETS, tmp_path / "pets")
    remove_one(tmp_path / "pets")
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(with_build(interrupted), tmp_path / "pets")
    assert contents(tmp_path) == before


def test_prepare_folder__tells_of_a_full_disk(tmp_path: Path) -> None:
    def no_space(tree: Path, workspace: Path) -> Built:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot build 'pets' in .*No space left on device"):
        prepare_folder(with_build(no_space), tmp_path / "pets")
    assert list(tmp_path.iterdir()) == []


def test_prepare_folder__does_not_replace_what_appeared_meanwhile(tmp_path: Path) -> None:
    def slow(tree: Path, workspace: Path) -> Built:
        (tmp_path / "pets").mkdir()
        (tmp_path / "pets" / "thesis.txt").write_text("years of work")
        return build(tree, workspace)

    with pytest.raises(DataError, match="was filled by something else meanwhile"):
        prepare_folder(with_build(slow), tmp_path / "pets")
    assert contents(tmp_path) == {"pets/thesis.txt": b"years of work"}


def test_split_of__is_stable_and_keeps_the_share() -> None:
    splits = [split_of(str(index), validation_share=0.2) for index in range(2000)]
    assert splits == [split_of(str(index), validation_share=0.2) for index in range(2000)]
    assert 340 < splits.count("val") < 460
    assert {split_of("x", validation_share=0.0), split_of("x", validation_share=1.0)} == {"train", "val"}


def test_prepare_folder__an_older_one_is_back_where_the_exchange_fails(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "pets"
    prepare_folder(PETS, out)
    (out / "train" / "dog" / "1.png").unlink()
    before, rename = contents(out), Path.rename

    def fail_to_place(path: Path, target: Path) -> Path:
        if Path(target) == out and path.name != "old":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_to_place)
    with pytest.raises(DataError, match="no space left"):
        prepare_folder(PETS, out)
    assert contents(out) == before


# folders that are no ImageFolder


def write_scenes(tree: Path, workspace: Path) -> Built:
    for name in ("boxes/all.json", "images/1.jpg", "images/2.jpg", "masks/train/1.png", "classes.txt"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    return Built([SOURCE], "# Scenes\n")


SCENES = DataSet(
    name="scenes",
    builder_version=1,
    seed=7,
    build=write_scenes,
    entries=("boxes", "images", "masks", "classes.txt"),
    describe=lambda counts: f"{counts['images']['']} scenes",
)


def test_prepare_folder__files_of_entries_count_and_are_hashed(tmp_path: Path) -> None:
    manifest = prepare_folder(SCENES, tmp_path / "out").manifest
    assert manifest.counts == {
        "boxes": {"": 1},
        "images": {"": 2},
        "masks": {"train": 1},
        "classes.txt": {"": 1},
    }
    assert SCENES.describe(manifest.counts) == "2 scenes"
    assert PETS.describe(COUNTS) == "5 train + 2 val images, 2 classes"
    assert prepare_folder(SCENES, tmp_path / "out", verify=True).state == "already there"
    for name in ("boxes/all.json", "images/2.jpg", "classes.txt"):
        (tmp_path / "out" / name).write_text("scratched")
        assert prepare_folder(SCENES, tmp_path / "out").state == "already there"
        assert prepare_folder(SCENES, tmp_path / "out", verify=True).state == "rebuilt"
        (tmp_path / "out" / name).unlink()
        assert prepare_folder(SCENES, tmp_path / "out").state == "rebuilt"


@pytest.mark.parametrize("name", ["thesis/1.txt", "images/mine/1.jpg", "masks/notes.txt", "masks/val/1.png"])
def test_prepare_folder__of_entries_is_left_alone_with_files_of_yours(tmp_path: Path, name: str) -> None:
    prepare_folder(SCENES, tmp_path / "out")
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("years of work")
    (tmp_path / "out" / "classes.txt").unlink()
    with pytest.raises(DataError, match="also holds files of yours: "):
        prepare_folder(SCENES, tmp_path / "out")
    assert path.read_text() == "years of work"
