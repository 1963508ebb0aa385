"""Runs that are kept behind a URI: an object store on loopback, and a folder that is named by one."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from mcbeit.config import dump
from mcbeit.errors import DataError, Interrupted, RunError
from mcbeit.pretrain import pretrain
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.runfolder import RunFolder
from mcbeit.stop import StopRequest
from mcbeit.storage import RemotePlace, is_remote, place_of
from mcbeit.tokenizer_training import train_tokenizer
from mcbeit.worker import Worker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The options behind `s3://runs/...` that reach an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        files, _ = FileSystem.from_uri(f"s3://runs?{options}")
        files.create_dir("runs")
        yield options
    server.stop()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def tokenizer(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tokenizer"
    optim = {"steps": 60, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    train_tokenizer(tiny.tokenizer_config(source, run, optim=optim))
    return run


def config_of(source: Path, tokenizer: Path, run: str) -> PretrainConfig:
    often = {"log": {"every_steps": 1, "tensorboard": False}, "checkpoint": {"every_epochs": 0.34}}
    return tiny.pretrain_config(source, tokenizer, Path("unused"), **often).model_copy(update={"run": run})


def names(uri: str) -> list[str]:
    """All files below a URI."""
    with place_of(uri) as place:
        place.pull()
        return [str(file.relative_to(place.path)) for file in place.path.rglob("*") if file.is_file()]


def stopped_after(steps: int) -> Worker:
    """A worker that is asked to stop then."""

    class Soon(StopRequest):
        calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            self.signal = signal.SIGINT if self.calls >= steps else None
            return super().__call__()

    return Worker(stop=Soon())


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_pretrain__kept_behind_a_uri_goes_on_there(
    kind: str, store: str, source: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = f"s3://runs/shapes/one?{store}" if kind == "s3" else f"file://{tmp_path}/kept/one"
    config = config_of(source, tokenizer, run)
    whole = pretrain(config_of(source, tokenizer, str(tmp_path / "whole")))
    with pytest.raises(Interrupted, match=r"stopped after 4 steps.*(s3|file)://") as stopped:
        pretrain(config, worker=stopped_after(4))
    assert "mcbeit-run-" not in str(stopped.value)
    assert {"config.yaml", "env.json", "metrics.jsonl"} <= set(names(run))
    with pytest.raises(RunError, match=r"the run '(s3|file)://.*' exists already"):
        pretrain(config)
    assert pretrain(config, resume=True)["loss"] == whole["loss"]
    kept = sorted({name.split("/")[1] for name in names(run) if name.startswith("checkpoints/step")})
    assert kept == ["step-00000005", "step-00000006"]  # older ones are gone there too
    with place_of(run) as place:
        place.pull()
        found = RunFolder(place.path, keep=2)
        uninterrupted = RunFolder(tmp_path / "whole", keep=2).records()
        assert [r["loss"] for r in found.records()] == [r["loss"] for r in uninterrupted]
        assert found.checkpoints.newest().step == 6
        text = (place.path / "config.yaml").read_text()
    assert run.partition("?")[0] in text
    assert "mcbeit-run-" not in text
    assert pretrain(config, resume=True)["loss"] == whole["loss"]  # is only told


def test_pretrain__trains_its_tokenizer_there_too(store: str, source: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    optim = {"steps": 60, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    preset.write_text(dump(tiny.tokenizer_config(source, tmp_path / "unused", optim=optim)))
    run = f"s3://runs/shapes/two?{store}"
    config = config_of(source, tmp_path, run)
    choice = config.tokenizer.model_copy(update={"path": None, "preset": str(preset)})
    pretrain(config.model_copy(update={"tokenizer": choice}))
    assert "tokenizer/checkpoints/step-00000060/manifest.json" in names(run)


def test_place_of__names_what_people_know(tmp_path: Path) -> None:
    def fail_there() -> None:
        with place_of(f"file://{tmp_path}/kept") as place:
            (place.path / "corrupt.txt").write_text("a.png\tbroken\n")
            raise DataError(f"the list is {place.path}/corrupt.txt in {place.path}")

    with pytest.raises(DataError) as error:
        fail_there()
    assert str(error.value) == f"the list is file://{tmp_path}/kept/corrupt.txt in file://{tmp_path}/kept"
    assert (tmp_path / "kept" / "corrupt.txt").read_text() == "a.png\tbroken\n"  # sent before the end


def test_remote_place__sends_the_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(RemotePlace, "_send", lambda self, name: sent.append(name))
    with place_of(f"file://{tmp_path}/kept") as place:
        for name in ("manifest.json", "model.safetensors", "zeta.safetensors"):
            (place.path / "step").mkdir(exist_ok=True)
            (place.path / "step" / name).write_bytes(b"x")
        (place.path / "config.yaml.partial").write_bytes(b"half")
        place.push()
        assert sent == ["step/model.safetensors", "step/zeta.safetensors", "step/manifest.json"]
        place.push()
        assert len(sent) == 3  # nothing has changed


def test_place_of__a_folder_is_itself(tmp_path: Path) -> None:
    with place_of(str(tmp_path)) as place:
        assert place.path == tmp_path
        assert place.named(f"in {tmp_path}") == f"in {tmp_path}"
    assert is_remote("s3://bucket/run")
    assert not is_remote("runs/demo")


def test_place_of__tells_what_is_wrong_with_a_uri(store: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'what://x/y' is no place that pyarrow knows: .*; use s3://, gs://, or a fol"):
        place_of("what://x/y").__enter__()
    elsewhere = store.replace("allow_bucket_creation=true", "allow_bucket_creation=false")

    def push_there() -> None:
        with place_of(f"s3://nobody/run?{elsewhere}") as place:
            (place.path / "config.yaml").write_text("x")
            place.push()

    with pytest.raises(RunError, match=r"the storage 's3://nobody/run\?.*' cannot be used: .*; check its address"):
        push_there()
