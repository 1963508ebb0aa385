"""Bodies that no client would send, over HTTP: 2xx or 4xx, nothing of the inside told, and the service as it was."""

import base64
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import encode, photo
from mutations import CHANGES, FORMATS, mutation, mutations, originals
from pydantic import BaseModel, ValidationError
from serving import IMAGE_TYPE, serving

from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.contracts.routes import ROUTES

GOOD = encode(photo(seed=7))
TEXT = base64.b64encode(GOOD).decode()
ALL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
REFUSED = {400, 404, 406, 408, 413, 415, 422}
LEAKS = re.compile(r"0x[0-9a-f]{6,}|PIL|Pillow|onnx|site-packages|\.py\b|Traceback|Error\(|BytesIO|/home/|/tmp/|/work/")
KSERVE = "/v2/models/fake/infer"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """No cache: every image is looked at."""
    with serving(limits={"formats": ALL, "items": 8}, cache_bytes=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _is_as_it_was(client: httpx.Client) -> Iterator[None]:
    """Whatever came before, a good image gives its vector, and nothing is held."""
    yield
    found = client.post("/v1/embed", content=GOOD, headers=IMAGE_TYPE).json()["embeddings"]
    np.testing.assert_allclose(found, FakeEncoder().embed([GOOD]), atol=1e-6)
    service = client.server.service  # type: ignore[attr-defined]
    assert service.admission.items == 0
    assert service.admission.bytes == 0


def check(answer: httpx.Response, what: object = None) -> int:
    """Its status."""
    assert answer.status_code == 200 or answer.status_code in REFUSED, (what, answer.status_code, answer.text[:500])
    if answer.status_code != 200:
        assert not LEAKS.search(answer.text), (what, answer.text[:500])
        assert len(answer.text) < 5000
    return answer.status_code


# images


def test_mutations__are_the_same_every_time_and_of_every_kind() -> None:
    assert [one.data for one in mutations(50)] == [mutation(number).data for number in range(50)]
    assert {(one.kind, one.change) for one in mutations(70)} == {(kind, name) for kind in FORMATS for name in CHANGES}


@pytest.mark.parametrize("kind", FORMATS)
def test_images__that_mutations_start_from_are_good(client: httpx.Client, kind: str) -> None:
    for original in originals()[kind]:
        answer = client.post("/v1/embed", content=original, headers=IMAGE_TYPE)
        assert check(answer) == (415 if kind == "AVIF" else 200)


def test_images__mutated_ones_are_answered_or_refused(client: httpx.Client) -> None:
    found = set()
    for number in range(280):
        one = mutation(number, seed=1)
        answer = client.post("/v1/embed", content=one.data, headers=IMAGE_TYPE)
        found.add(check(answer, (number, one.kind, one.change)))
    assert {200, 400, 415} <= found


# JSON

STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**31, 2**63, 10**400, float("nan"), float("inf"), "", "a", "\0", "é" * 40, "\ud800",
    [], {}, [[]], [None], {"image": None}, {"bytes": "%"}, {"url": "http://127.0.0.1/"}, {"image_url": {"url": TEXT}},
    {"content": [TEXT, TEXT]}, "data:", "data:image/png;base64,", "A" * 64, f"data:image/png;base64,{TEXT}", TEXT,
    TEXT[:-9],
)  # fmt: skip
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": [TEXT], "encoding_format": "float", "dimensions": 8, "pooling": "patch",
                       "normalize": True, "on_error": "null", "model": "fake"},
    "/embeddings": {"messages": [{"content": [{"image_url": {"url": TEXT}}]}]},
    "/embed": {"inputs": [TEXT], "normalize": True, "truncate": False, "dimensions": 4},
    "/embed_all": {"inputs": TEXT},
    "/v2/embed": {"images": [TEXT], "embedding_types": ["float", "int8"], "output_dimension": 8, "texts": []},
    "/v1/multimodalembeddings": {"inputs": [{"content": [{"image_base64": TEXT}]}], "output_dimension": 8},
    "/v1/multi-vector": {"input": [{"image": TEXT}], "embedding_type": "base64"},
    "/vectors": {"id": "a", "image": TEXT},
    "/vectorize": {"images": [TEXT], "texts": []},
    KSERVE: {"id": "1", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}],
             "outputs": [{"name": "embedding"}], "parameters": {"dimensions": 8}},
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in items for place in places(one, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same with something else in one place."""
    if not path:
        return new
    key, copy = path[0], value.copy()
    copy[key] = changed(value[key], path[1:], new)
    return copy


@pytest.mark.parametrize("path", EXAMPLES)
def test_json__with_one_strange_value(client: httpx.Client, path: str) -> None:
    assert check(client.post(path, content=json.dumps(EXAMPLES[path]))) == 200
    chance = random.Random(path)
    for place in places(EXAMPLES[path]):
        for value in chance.sample(STRANGE, 9):
            body = json.dumps(changed(EXAMPLES[path], place, value))
            check(client.post(path, content=body), (path, place, value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(EXAMPLES)), value=JSON, key=st.integers(0, 3))
def test_json__of_any_shape(client: httpx.Client, path: str, value: Any, key: int) -> None:
    names = sorted(EXAMPLES[path])
    body = {**EXAMPLES[path], names[key % len(names)]: value}
    check(client.post(path, content=json.dumps(body)))
    check(client.post(path, content=json.dumps(value)))


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"dimensions":' + b"9" * 5000 + b"}",
        b'{"inputs":[' + b"1," * 50_000 + b"1]}",
        b'{"images":[' + b"1," * 50_000 + b"1]}",
        b'{"input":[' + b'"",' * 50_000 + b'""]}',
        b'{"a":1,"a":2}',
        b"\xef\xbb\xbf{}",
        b'"\\ud800"',
        b"\xff\xfe{\0}\0",
        b"\0",
        b"{",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_json__that_is_deep_long_or_none(client: httpx.Client, path: str, body: bytes) -> None:
    found = check(client.post(path, content=body))
    assert found in (400, 413, 422) or (path == "/vectorize" and b"images" not in body)  # which may have none


# multipart and KServe's binary form

Break = Callable[[bytes, random.Random], bytes]


def broken(body: bytes, chance: random.Random) -> bytes:
    """Some bytes of it changed, cut off, or twice."""
    place, length = chance.randrange(len(body)), chance.randint(1, 40)
    return chance.choice((
        body[:place] + chance.randbytes(length) + body[place + length :],
        body[:place],
        body[:place] + body[place + length :],
        body[:place] + body[max(0, place - length) :],
        body[:place] + chance.choice((b"\r\n", b"--b", b"\0", b'"', b";", b":", b"\r", b"\n")) + body[place:],
    ))  # fmt: skip


def test_multipart__broken_anywhere(client: httpx.Client) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\nX-Y: z\r\n\r\n%b\r\n'
    small = encode(photo(4, 4))
    body = b"".join(part % (index, small) for index in range(3)) + b"--b--\r\n"
    chance, kind = random.Random(0), {"content-type": "multipart/form-data; boundary=b"}
    assert check(client.post("/v1/embed", content=body, headers=kind)) == 200
    for _ in range(150):
        check(client.post("/v1/embed", content=broken(body, chance), headers=kind))
    for told in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "a" * 9000,
        'multipart/form-data; boundary="',
        "multipart/form-data; boundary=b; charset=none",
        "multipart/form-dataX",
    ):
        check(client.post("/v1/embed", content=body, headers={"content-type": told}), told)
    check(client.post("/v1/embed", content=part % (1, b"x") * 100_000, headers=kind))


def kserve_binary(*elements: bytes) -> tuple[bytes, bytes]:
    """The JSON of a request, and what is behind it."""
    behind = b"".join(struct.pack("<I", len(one)) + one for one in elements)
    head = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(elements)],
                        "parameters": {"binary_data_size": len(behind)}}]}  # fmt: skip
    return json.dumps(head).encode(), behind


def test_kserve__broken_anywhere(client: httpx.Client) -> None:
    head, behind = kserve_binary(GOOD, encode(photo(4, 4)))
    length = "Inference-Header-Content-Length"
    assert check(client.post(KSERVE, content=head + behind, headers={length: str(len(head))})) == 200
    chance = random.Random(0)
    for _ in range(100):
        torn = broken(head, chance)
        check(client.post(KSERVE, content=torn + behind, headers={length: str(len(torn))}), torn)
        check(client.post(KSERVE, content=head + broken(behind, chance), headers={length: str(len(head))}))
    for told in ("-1", "0", "1", "1e3", "99999999999999", "9" * 5000, "\u00b2", "0x10", "1,2", str(len(head) - 1)):
        check(client.post(KSERVE, content=head + behind, headers={length.encode(): told.encode("latin-1")}), told)


@pytest.mark.parametrize(
    "shape", [[0], [-1], [2**70], [1.5], [1e300], ["1"], [None], [], [1] * 9, [2**62, 2**62], [1, -1]]
)
def test_kserve__shapes_that_do_not_fit(client: httpx.Client, shape: list[Any]) -> None:
    strange: tuple[Any, ...] = ([TEXT], [1, 2], "AA", None, {}, [["a" * 1000, ""]], [float("nan")], [[1], [2, 3]])
    for name, kind, tail in (("image", "BYTES", []), ("pixels", "UINT8", [64, 64, 3])):
        for data in strange:
            tensor = {"name": name, "datatype": kind, "shape": [*shape, *tail], "data": data}
            check(client.post(KSERVE, content=json.dumps({"inputs": [tensor]})), tensor)


def test_kserve__strings_do_not_take_the_room_of_the_longest(client: httpx.Client) -> None:
    """As an array, 20,000 of them would be 80 GB."""
    data = ["a" * 1_000_000, *[""] * 20_000]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": data}
    answer = client.post(KSERVE, content=json.dumps({"inputs": [tensor]}))
    assert "0 to 255" in answer.text


def test_kserve__elements_are_counted_while_they_are_read(client: httpx.Client) -> None:
    head, behind = kserve_binary(*[b""] * 500_000)
    answer = client.post(KSERVE, content=head + behind, headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.status_code == 413
    assert "more than the 8 images" in answer.text


MANY: tuple[Any, ...] = ([{}] * 1000, {"a": [{}] * 1000}, {str(number): {} for number in range(1000)}, [[{}] * 1000])
FORMS = sorted({route.form for route in ROUTES if route.form is not None}, key=lambda form: form.__name__)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", MANY, ids=("list", "list in dict", "dict", "list in list"))
def test_forms__do_not_collect_mistakes_without_end(form: type[BaseModel], value: Any) -> None:
    """Each takes a kilobyte: pydantic would make gigabytes of a list of a million wrong items."""
    assert {name: count for name in form.model_fields if (count := num_mistakes(form, {name: value})) > 20} == {}


def num_mistakes(form: type[BaseModel], value: dict[str, Any]) -> int:
    """How many pydantic tells of."""
    try:
        form.model_validate(value)
    except ValidationError as error:
        return error.error_count()
    return 0
