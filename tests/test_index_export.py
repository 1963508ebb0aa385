"""An index in the formats of others: what is in the files, and, where their packages are installed, what these read."""

import json
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from vectors import make_embeddings

from mcbeit.embeddings import Embeddings
from mcbeit.errors import VectorIndexError
from mcbeit.index import Index, build_index
from mcbeit.index_export import export_index, point_id
from mcbeit.index_kinds import MIN_IVFPQ, IndexConfig

AWKWARD = ['tab\tand\nline\\ "quoted"', "O'Brien 日本.jpg", "caf\udce9.jpg", "\\N", "d", "e"]
METADATA = [{"width": 5, "note": "a\tb\\c'd"}, None, {}, None, None, None]


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return replace(make_embeddings(6), ids=AWKWARD)


@pytest.fixture(scope="module")
def folder(embeddings: Embeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "index"
    build_index(embeddings, out, metadata=METADATA, paths=[*AWKWARD[:5], None])
    return out


def export(folder: Path, out: Path, kind: str | None = None, table: str = "embeddings", force: bool = False) -> Path:
    with Index.open(folder) as index:
        export_index(index, out, kind, table=table, force=force)
    return out


def readable(text: str | None) -> str | None:
    return None if text is None else text.replace("\udce9", "\N{REPLACEMENT CHARACTER}")


def test_export_index__parquet(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    table = pq.read_table(export(folder, tmp_path / "a.parquet"))
    assert table.column_names == ["id", "vector", "path", "label", "metadata"]
    assert table["id"].to_pylist() == [readable(identity) for identity in AWKWARD]
    assert table["path"].to_pylist()[4:] == ["d", None]
    assert table["label"].to_pylist() == ["even", "odd"] * 3
    assert [None if text is None else json.loads(text) for text in table["metadata"].to_pylist()] == METADATA
    np.testing.assert_allclose(np.array(table["vector"].to_pylist(), np.float32), embeddings.vectors, atol=1e-7)
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<")
    told = json.loads(table.schema.metadata[b"mcbeit"])
    assert told["metric"] == "cosine"
    assert told["encoder"]["fingerprint"] == embeddings.spec.fingerprint


def test_export_index__parquet_of_codes_has_the_whole_vectors(tmp_path: Path) -> None:
    many = make_embeddings(MIN_IVFPQ)
    build_index(many, tmp_path / "index", config=IndexConfig(kind="ivfpq"))
    table = pq.read_table(export(tmp_path / "index", tmp_path / "a.parquet"))
    assert table["id"].to_pylist() == many.ids
    found = table["vector"].combine_chunks().values.to_numpy().reshape(-1, 16)
    np.testing.assert_allclose(found, many.vectors, atol=1e-7)


def test_export_index__qdrant(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    lines = export(folder, tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    assert [uuid.UUID(point["id"]).version for point in points] == [5] * 6
    assert len({point["id"] for point in points}) == 6
    np.testing.assert_array_equal(np.array([point["vector"] for point in points], np.float32), stored_vectors(folder))
    assert points[0]["payload"] == {
        "id": AWKWARD[0],
        "path": AWKWARD[0],
        "label": "even",
        "metadata": METADATA[0],
        "fingerprint": embeddings.spec.fingerprint,
    }


def stored_vectors(folder: Path) -> np.ndarray:
    with Index.open(folder) as index:
        return np.concatenate([vectors for _, vectors in index.contents()])


def test_point_id__never_changes() -> None:
    """Points that are sent again replace those of before."""
    assert point_id("a.jpg") == "7bbcdc35-b444-59c1-8952-3052e2a6563a"
    assert point_id("a.jpg") != point_id("b.jpg")
    assert point_id("caf\udce9.jpg") != point_id("caf\N{REPLACEMENT CHARACTER}.jpg")


def copy_rows(script: str) -> list[list[str | None]]:
    """What PostgreSQL makes of the lines of COPY: cells between tabs, a backslash before what would end them."""
    lines = script.partition("FROM stdin;\n")[2].partition("\n\\.\n")[0].split("\n")
    escaped = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}

    def cell(text: str) -> str | None:
        if text == "\\N":
            return None
        parts, at = [], 0
        while at < len(text):
            step = 2 if text[at] == "\\" else 1
            parts.append(escaped.get(text[at : at + step], text[at : at + step]))
            at += step
        return "".join(parts)

    return [[cell(text) for text in line.split("\t")] for line in lines]


def test_export_index__pgvector(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    script = export(folder, tmp_path / "a.sql", table="photos").read_text(encoding="utf-8")
    assert script.startswith("BEGIN;\nCREATE EXTENSION IF NOT EXISTS vector;\n")
    assert 'CREATE TABLE "photos" (id text PRIMARY KEY, embedding vector(16) NOT NULL' in script
    assert script.endswith('CREATE INDEX ON "photos" USING hnsw (embedding vector_cosine_ops);\nCOMMIT;\n')
    assert embeddings.spec.fingerprint in script.partition("COMMENT ON TABLE")[2].partition("\n")[0]
    rows = copy_rows(script)
    assert [row[0] for row in rows] == [readable(identity) for identity in AWKWARD]
    assert rows[5][2] is None
    assert json.loads(rows[0][4] or "") == METADATA[0]
    vectors = np.array([json.loads(row[1] or "") for row in rows], np.float32)
    np.testing.assert_array_equal(vectors, stored_vectors(folder))


def test_export_index__pgvector_cannot_index_long_vectors(tmp_path: Path) -> None:
    build_index(make_embeddings(2, dim=2001), tmp_path / "index")
    assert "hnsw" not in export(tmp_path / "index", tmp_path / "a.sql").read_text()


def test_export_index__qdrant_reads_it(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client", reason="pip install qdrant-client")
    lines = export(folder, tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    client = qdrant.QdrantClient(":memory:")
    cosine = qdrant.models.VectorParams(size=16, distance=qdrant.models.Distance.COSINE)
    client.create_collection("photos", vectors_config=cosine)
    client.upload_points("photos", [qdrant.models.PointStruct(**json.loads(line)) for line in lines])
    found = client.query_points("photos", query=embeddings.vectors[1].tolist(), limit=1).points[0]
    client.close()
    assert found.payload["id"] == AWKWARD[1]
    assert found.score == pytest.approx(1, abs=1e-5)


def test_export_index__lancedb_reads_it(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="pip install lancedb")
    for force in (False, True):
        export(folder, tmp_path / "a.lancedb", table="photos", force=force)
    table = lancedb.connect(str(tmp_path / "a.lancedb")).open_table("photos")
    assert table.count_rows() == 6
    found = table.search(embeddings.vectors[1]).distance_type("cosine").limit(1).to_list()[0]
    assert (found["id"], found["label"]) == (AWKWARD[1], "odd")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.lancedb"]


def test_export_index__only_a_database_is_replaced_by_a_database(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.lance").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(VectorIndexError, match=r"holds other things than tables of LanceDB, such as 'a\.jpg'"):
        export(folder, tmp_path, "lancedb", force=True)
    with pytest.raises(VectorIndexError, match="is a file; a LanceDB database is a folder"):
        export(folder, tmp_path / "a.jpg", "lancedb", force=True)
    assert (tmp_path / "a.jpg").exists()


def test_export_index__without_lancedb(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(VectorIndexError, match=r"pip install lancedb; or export to \.parquet"):
        export(folder, tmp_path / "a.lancedb")
    assert list(tmp_path.iterdir()) == []


def test_export_index__the_format_has_to_be_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match=r"does not tell its format; end it in one of \.parquet \(parquet\)"):
        export(folder, tmp_path / "a.csv")
    export(folder, tmp_path / "a.csv", "parquet")
    assert pq.read_table(tmp_path / "a.csv").num_rows == 6


def test_export_index__what_is_there_is_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.sql"
    out.write_text("mine")
    with pytest.raises(VectorIndexError, match="is there already; replace it with --force"):
        export(folder, out)
    assert out.read_text() == "mine"
    export(folder, out, force=True)
    assert out.read_text().startswith("BEGIN;")


def test_export_index__places_that_are_no_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="is a folder; name a file"):
        export(folder, tmp_path, "qdrant", force=True)
    with pytest.raises(VectorIndexError, match="there is no folder"):
        export(folder, tmp_path / "none" / "a.sql")


@pytest.mark.parametrize("table", ["", "1a", 'a"; DROP TABLE b; --', "a b", "ä", "a" * 64])
def test_export_index__names_of_tables(folder: Path, tmp_path: Path, table: str) -> None:
    with pytest.raises(VectorIndexError, match="no name of a table"):
        export(folder, tmp_path / "a.sql", table=table)
