"""`mcbeit serve` as a person starts it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from images import encode, photo
from processes import begin, finish

from mcbeit.cli.main import cli
from mcbeit.export import ExportConfig, export_model
from mcbeit.fake_encoder import FakeEncoder


def address(process: subprocess.Popen[str]) -> str:
    """Where it says that it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"ready at (http://\S+)", line):
            return found[1]
    raise AssertionError("it ended before it was ready")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve__plain(number: signal.Signals) -> None:
    process = begin("serve", "--fake", "--plain", "port=0")
    answer = httpx.post(f"{address(process)}/v1/embed", content=encode(photo()), timeout=60, trust_env=False)
    assert len(answer.json()["embeddings"][0]) == FakeEncoder().spec.dim
    process.send_signal(number)
    assert "stopped; every request that was accepted is answered" in finish(process)


def test_serve__print_config() -> None:
    told = CliRunner().invoke(cli, ["serve", "--fake", "limits.items=8", "--print-config"]).output
    assert "items: 8" in told
    assert "- fake" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--plain"], "no model: name a folder that `mcbeit export` wrote"),
        (["nowhere", "--plain"], "mcbeit export nowhere -o DIR"),
        (["--fake", "--plain", "host=0.0.0.0"], "there is no API key"),
        (["--fake", "--plain", "limits.itmes=3"], "did you mean 'limits.items'"),
    ],
)
def test_serve__mistakes(words: list[str], told: str) -> None:
    result = CliRunner().invoke(cli, ["serve", *words])
    assert result.exit_code == 2
    assert told in result.output


LOADED = """
import sys
from mcbeit.config import validate
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.plain import PlainServer
import httpx
with PlainServer(validate(ServeConfig, {"models": [sys.argv[1]], "port": 0})).in_background() as server:
    print(len(httpx.post(server.address + "/v1/embed", content=open(sys.argv[2], "rb").read()).json()["embeddings"][0]))
print(sorted({"torch", "torchvision", "timm", "ray", "matplotlib", "pyarrow", "faiss", "scipy"} & set(sys.modules)))
"""


def test_serve__an_exported_model_without_torch(tmp_path: Path) -> None:
    from backbones import backbone, save_backbone

    weights = save_backbone(tmp_path / "model.pth", backbone())
    export_model(str(weights), tmp_path / "exported", ExportConfig(num_images=8, measure_speed=False, num_heads=2))
    (tmp_path / "photo.png").write_bytes(encode(photo()))
    command = [sys.executable, "-c", LOADED, str(tmp_path / "exported"), str(tmp_path / "photo.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["[]"]
