"""What `/docs` says, and whether the file in docs/ says the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mcbeit.serve.contracts.routes import ROUTES
from mcbeit.serve.openapi import main, text

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_file__is_what_the_application_says() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run: python -m mcbeit.serve.openapi docs/openapi.json"


def test_main(tmp_path: Path) -> None:
    path = str(tmp_path / "openapi.json")
    assert main([path]) == 0
    assert main(["--check", path]) == 0
    (tmp_path / "openapi.json").write_text("{}", encoding="utf-8")
    assert main(["--check", path]) == 1


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_schema__is_whole() -> None:
    schema = json.loads(text())
    assert schema["openapi"].startswith("3.1")
    assert set(schema["paths"]) == {route.paths[0].replace(":path", "") for route in ROUTES}
    for reference in references(schema):
        node = schema
        for name in reference.removeprefix("#/").split("/"):
            node = node[name]
    names = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            told = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path))
            assert operation["summary"]


def test_examples__are_answered(client: httpx.Client) -> None:
    for route in ROUTES:
        if route.form is not None and route.example is not None and "{" not in route.paths[0]:
            answer = client.request(route.method, route.paths[0], json=json.loads(json.dumps(route.example).replace(
                '"demo"', '"fake"')))  # fmt: skip
            assert answer.status_code == 200, (route.paths[0], answer.text)


def test_docs__need_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200
