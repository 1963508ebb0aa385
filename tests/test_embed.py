"""`mcbeit embed`: every kind of source, images that cannot be read, files in the way, going on."""

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import broken_images, write_images
from shards import cut, header_of, pictures, write_parquet, write_tar
from tiny import write_planes

from mcbeit.cli.main import cli
from mcbeit.embed import Output, embed
from mcbeit.embed_task import EmbedConfig, Task, task_config
from mcbeit.embeddings import companion, describe, load_embeddings
from mcbeit.errors import DataError, Interrupted
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.stop import StopRequest

NUM_IMAGES = 150  # three chunks
BATCHES = "batch_size=16"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small images in one folder; not to be written to."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, pictures(NUM_IMAGES))
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["embed", *map(str, arguments)])


def ok(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def output(source: Path, out: Path, *assignments: str) -> Output:
    config = task_config(EmbedConfig, str(source), [BATCHES, *assignments])
    return Output(out, Task("fake", config), config.unreadable)


class StopWhen(StopRequest):
    """Somebody who wants a stop as soon as something is the case."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        super().__init__()
        self._is_so = is_so

    def __call__(self) -> bool:
        if self._is_so():
            self.signal = signal.SIGTERM
        return super().__call__()


def stop_with_chunks(made: Output, count: int) -> StopWhen:
    """As soon as so many chunks are there."""
    return StopWhen(lambda: len(list(made.partial.glob("*.safetensors"))) >= count)


def test_embed__writes_what_the_encoder_gives_in_the_order_of_the_images(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos.npy"
    assert ok("fake", photos, "-o", out, BATCHES) == f"{out}: 150 rows of embedding (64)\n"
    found = load_embeddings(out)
    assert found.ids == [f"{i:03}.png" for i in range(NUM_IMAGES)]
    assert found.paths == [f"{photos}/{i:03}.png" for i in range(NUM_IMAGES)]
    np.testing.assert_allclose(found.vectors, FakeEncoder().embed(found.paths), atol=1e-6)
    assert found.spec == FakeEncoder().spec
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photos.npy", "photos.npy.ids.csv", "photos.npy.json"]


def test_embed__patch_features(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.npy"
    assert ok("fake", photos, "-o", out, "--patches") == f"{out}: 150 rows of patch features (4x4x64)\n"
    wanted = FakeEncoder().patch_features([photos / "000.png", photos / "001.png"])
    np.testing.assert_allclose(np.load(out)[:2], wanted, atol=1e-6)


def test_embed__the_encoder_is_told_its_options(photos: Path, tmp_path: Path) -> None:
    ok("fake", photos, "-o", tmp_path / "e.npy", "image_size=32", "normalize=false", "data.num_workers=2")
    found = load_embeddings(tmp_path / "e.npy")
    assert (found.spec.image_size, found.spec.normalize) == (32, False)
    assert not np.allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_embed__tar_parquet_list_and_folder_give_the_same_rows(photos: Path, tmp_path: Path) -> None:
    images = pictures(20)
    write_tar(tmp_path / "images.tar", images)
    write_parquet(tmp_path / "images.parquet", list(images.values()), rows=3, labels=[i % 2 for i in range(20)])
    (tmp_path / "list.txt").write_text("".join(f"{photos}/{name}\n" for name in images))
    wanted = FakeEncoder().embed(list(images.values()))
    for name in ("images.tar", "images.parquet", "list.txt"):
        ok("fake", tmp_path / name, "-o", tmp_path / f"{name}.npy", "data.num_workers=4", "batch_size=4")
        np.testing.assert_allclose(load_embeddings(tmp_path / f"{name}.npy").vectors, wanted, atol=1e-6)
    assert load_embeddings(tmp_path / "list.txt.npy").ids[3] == f"{photos}/003.png"
    assert load_embeddings(tmp_path / "images.tar.npy").ids[3] == f"{tmp_path}/images.tar:003.png"
    assert load_embeddings(tmp_path / "images.parquet.npy").labels.tolist() == [i % 2 for i in range(20)]


def test_embed__labels_of_an_imagefolder(shapes: Path, tmp_path: Path) -> None:
    ok("fake", shapes, "-o", tmp_path / "e.csv", "data.kind=imagefolder")
    found = load_embeddings(tmp_path / "e.csv")
    assert found.classes == ["disc", "square"]
    assert [found.classes[label] for label in found.labels] == [name.partition("/")[0] for name in found.ids]


def test_embed__images_of_many_channels(tmp_path: Path) -> None:
    planes = write_planes(tmp_path / "planes")
    message = refused("fake", planes, "-o", tmp_path / "e.npy", "data.channels=5")
    assert "fake takes images of 3 channels, data.channels is 5; set data.channels=3" in message


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good images with two bad ones between them."""
    folder = tmp_path / "mixed"
    write_images(folder, {**pictures(100), "001b.png": broken_images()["half.png"], "070b.jpg": b""})
    return folder


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".safetensors"])
def test_embed__unreadable_images_are_listed_and_left_out(suffix: str, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / f"e{suffix}"
    listed = companion(out, ".unreadable.txt")
    said = ok("fake", mixed, "-o", out, "data.max_corrupt_fraction=0.5")
    assert said == f"{out}: 100 rows of embedding (64); 2 images cannot be read and are left out; see {listed}\n"
    assert load_embeddings(out).ids == sorted(pictures(100))
    assert listed.read_text().splitlines() == [
        f"{mixed}/001b.png\tthe PNG data is truncated or corrupt",
        f"{mixed}/070b.jpg\tthe file is empty",
    ]
    assert describe(out).num_unreadable == 2


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".safetensors"])
def test_embed__or_have_empty_rows(suffix: str, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / f"e{suffix}"
    said = ok("fake", mixed, "-o", out, "data.max_corrupt_fraction=0.5", "unreadable=empty")
    assert "102 rows of embedding (64); 2 images cannot be read and are empty rows" in said
    found = load_embeddings(out)
    empty = np.isnan(found.vectors).all(axis=1)
    assert [name for name, is_empty in zip(found.ids, empty, strict=True) if is_empty] == ["001b.png", "070b.jpg"]
    assert not np.isnan(found.vectors[~empty]).any()


def test_embed__too_many_unreadable_images_stop_it_until_they_are_mended(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    message = refused("fake", mixed, "-o", out)
    listed = tmp_path / "e.npy.partial" / "unreadable.txt"
    assert "of 102 images cannot be read, more than data.max_corrupt_fraction=0.01 allows;" in message
    assert str(listed) in message
    assert listed.read_text()
    assert not out.exists()
    write_images(mixed, {"001b.png": pictures(1)["000.png"], "070b.jpg": pictures(1)["000.png"]})
    ok("fake", mixed, "-o", out, "--resume")
    found = load_embeddings(out)
    assert len(found.ids) == 102
    np.testing.assert_allclose(found.vectors[found.ids.index("001b.png")], found.vectors[0], atol=1e-6)
    assert not companion(out, ".unreadable.txt").exists()


def test_embed__damaged_shards_are_listed(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{name}.tar", pictures(20)) for name in "ab"]
    cut(shards[1], header_of(shards[1], "015.png") + 100)
    said = ok("fake", tmp_path / "*.tar", "-o", tmp_path / "e.npy", "data.max_corrupt_fraction=0.5")
    assert said.endswith(f"35 rows of embedding (64); see {tmp_path}/e.npy.unreadable.txt\n")
    assert (tmp_path / "e.npy.unreadable.txt").read_text().startswith(f"{shards[1]}\t")
    assert "5 of 40 images cannot be read" in refused("fake", tmp_path / "*.tar", "-o", tmp_path / "again.npy")


def test_embed__nothing_but_unreadable_images(tmp_path: Path) -> None:
    write_images(tmp_path / "bad", broken_images())
    message = refused("fake", tmp_path / "bad", "-o", tmp_path / "e.npy", "data.max_corrupt_fraction=1")
    assert "images can be read, such as" in message


def test_embed__a_stop_keeps_finished_chunks_and_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    embed(output(photos, tmp_path / "whole.npy"))
    stopped = output(photos, tmp_path / "e.npy")
    with pytest.raises(Interrupted) as told:
        embed(stopped, stop=stop_with_chunks(stopped, 1))
    kept = len(list(stopped.partial.glob("*.safetensors"))) * 64
    assert 0 < kept < NUM_IMAGES
    assert told.value.signal == signal.SIGTERM
    assert f"stopped; {kept} of 150 images are kept; go on with the same command and --resume" in str(told.value)
    embed(stopped, resume=True)
    for suffix in ("", ".ids.csv", ".json"):
        assert (tmp_path / f"e.npy{suffix}").read_bytes() == (tmp_path / f"whole.npy{suffix}").read_bytes()
    assert not stopped.partial.exists()


def test_embed__a_stop_while_the_file_is_put_together_leaves_no_part_of_it(photos: Path, tmp_path: Path) -> None:
    late = output(photos, tmp_path / "late.npy")
    with pytest.raises(Interrupted, match="150 of 150 images are kept"):
        embed(late, stop=StopWhen((tmp_path / ".late.npy.partial").exists))
    assert [file.name for file in tmp_path.iterdir()] == ["late.npy.partial"]
    embed(late, resume=True)
    assert len(load_embeddings(late.path).ids) == NUM_IMAGES


def test_embed__a_finished_file_is_only_told(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    ok("fake", photos, "-o", out, BATCHES)
    before = out.read_bytes(), out.stat().st_mtime_ns
    assert ok("fake", photos, "-o", out, BATCHES, "--resume").startswith(f"{out}: complete already, 150 rows")
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    assert "is complete, with 150 rows of embedding by fake of" in refused(
        "fake", photos, "-o", out, "image_size=32", "--resume"
    )


def test_embed__killed_between_the_file_and_the_end_only_tidies_up(photos: Path, tmp_path: Path) -> None:
    late = output(photos, tmp_path / "e.npy")
    with pytest.raises(Interrupted):
        embed(late, stop=stop_with_chunks(late, 3))
    (tmp_path / "aside").mkdir()
    late.partial.rename(tmp_path / "aside" / "chunks")
    embed(late)
    (tmp_path / "aside" / "chunks").rename(late.partial)
    assert embed(late, resume=True).is_old
    assert not late.partial.exists()


def test_embed__what_is_in_the_way_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    companion(out, ".json").write_text("mine")
    assert f"'{out}.json' exists already; choose another -o, or remove it" in refused("fake", photos, "-o", out)
    companion(out, ".json").unlink()
    out.write_bytes(b"mine")
    assert f"'{out}' exists already" in refused("fake", photos, "-o", out)
    assert out.read_bytes() == b"mine"
    assert f"there is no '{out}.json'; 'e.npy' cannot be used without it" in refused(
        "fake", photos, "-o", out, "--resume"
    )
    message = refused("fake", photos, "-o", tmp_path / "nowhere" / "e.npy")
    assert f"there is no folder '{tmp_path}/nowhere' to write 'e.npy' to; make it" in message
    assert "end the name of -o in one" in refused("fake", photos, "-o", tmp_path / "e.txt")


def test_embed__goes_on_with_its_own_rows_only(photos: Path, tmp_path: Path) -> None:
    begun = output(photos, tmp_path / "e.npy")
    with pytest.raises(Interrupted):
        embed(begun, stop=stop_with_chunks(begun, 1))
    common = ("fake", photos, "-o", begun.path)
    assert "was begun already: go on with --resume, or remove the folder" in refused(*common, BATCHES)
    message = refused(*common, "--resume", "batch_size=8", "image_size=48")
    assert "batch_size: 16 there, 8 now" in message
    assert "model.preprocess.image_size: 64 there, 48 now" in message
    with pytest.raises(DataError):
        embed(output(tmp_path / "nothing", begun.path), resume=True)
    fewer = tmp_path / "fewer"
    write_images(fewer, pictures(NUM_IMAGES - 1))
    assert "images.images: 150 there, 149 now" in refused("fake", fewer, "-o", begun.path, "--resume", BATCHES)


def test_embed__the_format_and_empty_rows_may_be_chosen_at_the_end(mixed: Path, tmp_path: Path) -> None:
    allowed = "data.max_corrupt_fraction=0.5"
    begun = output(mixed, tmp_path / "e.npy", allowed)
    with pytest.raises(Interrupted):
        embed(begun, stop=stop_with_chunks(begun, 1))
    again = output(mixed, tmp_path / "e.npy", allowed, "unreadable=empty", "data.num_workers=3")
    assert embed(again, resume=True).description.num_rows == 102


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["poolin=cls"], "unknown key 'poolin'; did you mean 'pooling'?"),
        (["data.chanels=3"], "unknown key 'data.chanels'; did you mean 'data.channels'?"),
        (["unreadable=keep"], "unreadable: input should be 'drop' or 'empty' (found 'keep')"),
        (["--address", "auto"], "--gpus-per-worker and --address say how Ray is used; name the --workers too"),
        (["--gpus-per-worker", "1"], "name the --workers too"),
    ],
)
def test_embed__mistakes_of_the_command_line(arguments: list[str], message: str, photos: Path, tmp_path: Path) -> None:
    assert message in refused("fake", photos, "-o", tmp_path / "e.npy", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_embed__models_and_images_that_are_not_there(photos: Path, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    assert f"there is no answer from {nowhere}" in refused(nowhere, photos, "-o", tmp_path / "e.npy")
    assert "there is no image source at" in refused("fake", tmp_path / "nowhere", "-o", tmp_path / "e.npy")
    assert list(tmp_path.iterdir()) == []


def test_embed__names_that_are_no_text_are_written_with_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "caf\udce9,\n.png").write_bytes(pictures(1)["000.png"])
    for suffix in (".npy", ".parquet", ".csv"):
        ok("fake", folder, "-o", tmp_path / f"e{suffix}")
        assert load_embeddings(tmp_path / f"e{suffix}").ids == ["caf\\xe9,\n.png"]
    with companion(tmp_path / "e.npy", ".ids.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 2


def test_embed__the_description_tells_the_model_and_the_images(photos: Path, tmp_path: Path) -> None:
    ok("fake", photos, "-o", tmp_path / "e.npy")
    told = json.loads(companion(tmp_path / "e.npy", ".json").read_text())
    assert told["place"] == str(photos)
    assert told["source"]["images"] == NUM_IMAGES
    assert told["spec"]["preprocess"]["image_size"] == 64
