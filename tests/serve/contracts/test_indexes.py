"""`/v1/indexes`: what is put in is found again, by HTTP."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from images import encode, photo
from serving import serve_config, serving

from mcbeit.errors import VectorIndexError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.contracts.routes import ROUTES
from mcbeit.serve.indexes import LocalIndexes
from mcbeit.serve.service import Service

FILES = [encode(photo(seed=seed)) for seed in range(12)]
VECTORS = FakeEncoder().embed(FILES)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with the index 'shop', which holds all files."""
    with serving(indexes=str(tmp_path_factory.mktemp("indexes"))) as client:
        assert client.put("/v1/indexes/shop").status_code == 201
        items = [
            {"id": f"i/{index}", "image": text(data), "metadata": {"half": index // 6, "even": index % 2 == 0}}
            for index, data in enumerate(FILES)
        ]
        answer = client.post("/v1/indexes/shop/items", json=items)
        assert (answer.status_code, answer.json()) == (200, {"index": "shop", "count": 12, "added": 12})
        yield client


def found(client: httpx.Client, **body: Any) -> list[str]:
    answer = client.post("/v1/indexes/shop/search", json=body)
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["data"]]


def nearest(query: np.ndarray, among: range = range(12)) -> list[str]:
    return [f"i/{index}" for index in sorted(among, key=lambda index: -float(VECTORS[index] @ query))]


def test_create__once(shop: httpx.Client) -> None:
    again = shop.put("/v1/indexes/shop", json={"model": "fake", "dim": 64, "metric": "cosine", "type": "flat"})
    assert (again.status_code, again.json()["count"]) == (200, 12)
    assert shop.get("/v1/indexes/shop").json() == again.json()
    assert shop.get("/v1/indexes").json()["data"] == [again.json()]


def test_search__by_image_vector_and_id(shop: httpx.Client) -> None:
    query = encode(photo(seed=99))
    (vector,) = FakeEncoder().embed([query])
    wanted = nearest(vector)[:5]
    numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    assert found(shop, image=text(query), k=5) == wanted
    assert (
        found(shop, image={"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text(query)}"}}, k=5)
        == wanted
    )
    assert found(shop, embedding=vector.tolist(), k=5) == wanted
    assert found(shop, embedding=numbers, k=5) == wanted
    assert found(shop, id="i/3", k=4) == nearest(VECTORS[3])[1:5]


def test_search__pages_filters_and_what_is_included(shop: httpx.Client) -> None:
    query = VECTORS[0].tolist()
    assert found(shop, embedding=query, k=12, filter={"half": 1}) == nearest(VECTORS[0], range(6, 12))
    assert found(shop, embedding=query, k=12, filter={"half": [0, 1], "even": True}) == nearest(
        VECTORS[0], range(0, 12, 2)
    )
    first = shop.post("/v1/indexes/shop/search", json={"embedding": query, "k": 8}).json()
    second = shop.post(
        "/v1/indexes/shop/search", json={"embedding": query, "k": 8, "offset": first["next_offset"]}
    ).json()
    assert [hit["id"] for hit in first["data"] + second["data"]] == nearest(VECTORS[0])
    assert second["next_offset"] is None
    assert first["data"][0] == {"id": "i/0", "score": 1.0, "metadata": {"half": 0, "even": True}}
    (hit,) = shop.post("/v1/indexes/shop/search", json={"embedding": query, "k": 1, "include": ["embedding"]}).json()[
        "data"
    ]
    np.testing.assert_allclose(hit["embedding"], VECTORS[0], atol=1e-6)
    assert "metadata" not in hit
    assert len(found(shop, embedding=query, k=12, dedup=-1)) == 1


def test_items__one_all_and_no_more(shop: httpx.Client) -> None:
    one = shop.get("/v1/indexes/shop/items/i/4").json()
    assert (one["id"], one["metadata"]) == ("i/4", {"half": 0, "even": True})
    np.testing.assert_allclose(one["embedding"], VECTORS[4], atol=1e-6)
    first = shop.get("/v1/indexes/shop/items", params={"limit": 7}).json()
    rest = shop.get("/v1/indexes/shop/items", params={"after": first["after"], "include": ""}).json()
    assert [item["id"] for item in first["data"] + rest["data"]] == [f"i/{index}" for index in range(12)]
    assert (rest["after"], rest["data"][0]) == (None, {"id": "i/7"})


def test_items__replaced_and_deleted(shop: httpx.Client) -> None:
    assert shop.put("/v1/indexes/other").status_code == 201
    vectors = [{"id": name, "embedding": VECTORS[index].tolist()} for index, name in enumerate("abc")]
    path = "/v1/indexes/other/items"
    assert shop.post(path, json={"items": vectors}).json()["added"] == 3
    assert shop.post(path, json={"items": vectors[:1]}).json() == {"index": "other", "count": 1, "added": 0}
    assert shop.delete(f"{path}/a").json()["deleted"] == 1
    assert shop.request("DELETE", path, json={"ids": ["a", "b"]}).json() == {"index": "other", "deleted": 1}
    assert [item["id"] for item in shop.get(path).json()["data"]] == ["c"]
    assert shop.delete("/v1/indexes/other").json() == {"name": "other", "deleted": True}
    assert shop.get("/v1/indexes/other").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "told"),
    [
        ("GET", "nothing", None, 404, "not_found", "there is no index 'nothing'"),
        ("PUT", "Bad Name", None, 400, "invalid", "small letters"),
        ("PUT", "new", {"dim": 3}, 400, "invalid_request", "have 64 numbers"),
        ("PUT", "new", {"model": "none"}, 404, "model_not_found", "served: fake"),
        ("PUT", "new", {"metric": "l2"}, 422, "invalid_request", "metric: Input should be 'cosine'"),
        ("GET", "shop/items/none", None, 404, "not_found", "no item 'none'"),
        ("GET", "shop/items?limit=x", None, 400, "invalid_request", "must be a number"),
        ("GET", "shop/items?limit=5000", None, 400, "invalid", "1 to 1000"),
        ("GET", "shop/items?include=all", None, 400, "invalid_request", "allowed: metadata, embedding"),
        ("POST", "shop/items", {"items": []}, 422, "invalid_request", "items: List should have at least 1 item"),
        ("POST", "shop/items", [{"id": "a"}], 422, "invalid_request", "exactly one of image and embedding"),
        ("POST", "shop/items", [{"id": "a", "embedding": [1.0]}], 400, "invalid", "has 1 numbers, not 64"),
        ("POST", "shop/items", [{"id": "a", "embedding": "AAAA"}], 400, "invalid_request", "3 bytes are no float32"),
        ("POST", "shop/items", [{"id": "a", "embedding": "?"}], 400, "invalid_base64", "embedding: this is not valid"),
        ("POST", "shop/items", [{"id": "a", "image": "a cat"}], 400, "modality_not_supported", "items[0].image: this"),
        ("POST", "shop/items", {"items": [{"id": "a", "image": text(FILES[0])}], "revision": "x"}, 409, "wrong_model",
         "vectors of another"),
        ("POST", "shop/search", {"id": "none"}, 404, "not_found", "no item 'none'"),
        ("POST", "shop/search", {"id": "a", "image": "b"}, 422, "invalid_request", "exactly one of"),
        ("POST", "shop/search", {"id": "i/1", "filters": {}}, 422, "invalid_request", "filters: Extra inputs"),
        ("POST", "shop/search", {"id": "i/1", "k": 0}, 400, "invalid", "k must be 1 or more"),
        ("POST", "shop/search", {"embedding": [0.0] * 64}, 400, "invalid", "only zeros"),
    ],
)  # fmt: skip
def test_refusals(shop: httpx.Client, method: str, path: str, body: Any, status: int, code: str, told: str) -> None:
    answer = shop.request(method, f"/v1/indexes/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert told in error["message"]


def test_items__a_bad_image_keeps_all_out_and_is_named(shop: httpx.Client) -> None:
    items = [{"id": "new", "image": text(FILES[0])}, {"id": "e", "embedding": VECTORS[0].tolist()},
             {"id": "bad", "image": text(FILES[1][:200])}]  # fmt: skip
    answer = shop.post("/v1/indexes/shop/items", json=items)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items[2].image")
    assert shop.get("/v1/indexes/shop").json()["count"] == 12


def test_examples_of_the_documentation(shop: httpx.Client) -> None:
    shop.put("/v1/indexes/example")
    for route in ROUTES:
        if route.tag == "indexes" and route.example is not None:
            path = route.paths[0].replace("{name}", "example")
            body = json.loads(json.dumps(route.example).replace('"demo"', '"fake"'))
            answer = shop.request(route.method, path, json=body)
            assert answer.status_code in (200, 201), (path, answer.text)
            assert not route.answer or answer.json().keys() == route.answer.keys()
    shop.delete("/v1/indexes/example")


def test_service__has_none_unless_it_is_told_to(client: httpx.Client) -> None:
    answer = client.get("/v1/indexes")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "indexes_disabled")
    assert "indexes=FOLDER" in answer.json()["detail"]


def test_service__finds_them_again_and_refuses_those_of_another_model(tmp_path: Path) -> None:
    item = {"id": "a", "image": text(FILES[0])}
    with serving(indexes=str(tmp_path)) as client:
        client.put("/v1/indexes/shop")
        client.post("/v1/indexes/shop/items", json=[item])
    with serving(FakeEncoder(dim=64, image_size=32), indexes=str(tmp_path)) as client:
        assert client.get("/v1/indexes/shop").json()["count"] == 1
        answer = client.post("/v1/indexes/shop/items", json=[item])
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_model")
        assert found(client, embedding=VECTORS[0].tolist()) == ["a"]  # whose they are is the word of the client
        assert client.put("/v1/indexes/shop").json()["error"]["code"] == "exists"


def test_service__one_writer(tmp_path: Path) -> None:
    service = Service(serve_config(indexes=str(tmp_path)))
    with pytest.raises(VectorIndexError, match="is open in another process"):
        LocalIndexes(tmp_path, patience_seconds=0.1)
    assert service.indexes is not None


def test_keys__are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCBEIT_API_KEYS", "word")
    with serving(indexes=str(tmp_path)) as client:
        assert client.get("/v1/indexes").status_code == 401
        assert client.get("/v1/indexes", headers={"x-api-key": "word"}).status_code == 200
