"""`mcbeit whiten`: what it learns, that it fits one encoder only, and its mistakes."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import write_images
from safetensors.numpy import save_file
from shards import pictures

from mcbeit.cli.main import cli
from mcbeit.embeddings import load_embeddings
from mcbeit.encoder import EncoderConfig, load_encoder
from mcbeit.errors import EncoderError
from mcbeit.whitening import Moments, Whitening, load_whitening

MODEL = "timm:test_vit"  # of random weights: whitening does not ask what vectors mean
OPTIONS = ("weights=random", "image_size=32", "threads=1")
NUM_IMAGES = 150  # the embedding has 64 numbers
FINGERPRINT = "f" * 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, pictures(NUM_IMAGES))
    return folder


@pytest.fixture(scope="module")
def learned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whitening of MODEL; not to be written to."""
    out = tmp_path_factory.mktemp("whitening") / "w.safetensors"
    result = run("whiten", MODEL, photos, "-o", out, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: 64 numbers of an embedding become 64, learned from 150 images\n"
    return out


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def config(**changes: object) -> EncoderConfig:
    return EncoderConfig.model_validate({"weights": "random", "image_size": 32, **changes})


def covariance(vectors: np.ndarray) -> np.ndarray:
    return np.cov(vectors.astype(np.float64), rowvar=False, bias=True)


def spread(seed: int = 0, count: int = 500) -> np.ndarray:
    """Vectors of 6 numbers with a mean, and with axes of quite different deviations."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 6)) * [9, 5, 3, 2, 1, 0.5] @ rng.standard_normal((6, 6))
    return (mixed + rng.standard_normal(6) * 5).astype(np.float32)


def learn(*batches: np.ndarray, dim: int | None = None) -> Whitening:
    """The whitening of vectors of 6 numbers."""
    moments = Moments(6)
    for batch in batches:
        moments.add(batch)
    return moments.whitening(fingerprint=FINGERPRINT, dim=dim)


def test_embed__with_whitening_the_covariance_is_the_identity(learned: Path, photos: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain.npy", tmp_path / "white.npy"
    assert run("embed", MODEL, photos, "-o", plain, *OPTIONS, "normalize=false").exit_code == 0
    white = (*OPTIONS, "normalize=false", f"whitening={learned}")
    assert run("embed", MODEL, photos, "-o", out, *white).exit_code == 0
    before, found = load_embeddings(plain), load_embeddings(out)
    assert np.abs(covariance(before.vectors) - np.eye(64)).max() > 0.1
    # the model ends in a layer norm, so its vectors lie in a plane: one axis of 64 has nothing on it
    np.testing.assert_allclose(covariance(found.vectors), np.diag([1.0] * 63 + [0.0]), atol=1e-2)
    np.testing.assert_allclose(found.vectors.mean(axis=0), 0, atol=1e-3)
    assert found.spec.fingerprint != before.spec.fingerprint
    assert load_whitening(learned, fingerprint=before.spec.fingerprint).sha256 == found.spec.whitening


def test_embed__whitened_vectors_have_unit_length_unless_told_otherwise(learned: Path, photos: Path) -> None:
    encoder = load_encoder(MODEL, config(whitening=str(learned)))
    vectors = encoder.embed(sorted(photos.iterdir())[:5])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("change", ["layer=2", "pooling=mean", "final_norm=false", "image_size=48", "seed=1"])
def test_embed__a_whitening_of_other_tokens_is_refused(
    change: str, learned: Path, photos: Path, tmp_path: Path
) -> None:
    given = [f"whitening={learned}", change]
    message = refused("embed", MODEL, photos, "-o", tmp_path / "e.npy", *OPTIONS, *given)
    assert "was learned from another model, or from other tokens of it" in message
    assert "learn it anew with the same options" in message
    assert list(tmp_path.iterdir()) == []


def test_whiten__to_fewer_dimensions_keeps_the_first_axes(learned: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "short.safetensors"
    assert run("whiten", MODEL, photos, "-o", out, "--dim", "8", *OPTIONS).exit_code == 0
    short = load_encoder(MODEL, config(whitening=str(out), normalize=False))
    long = load_encoder(MODEL, config(whitening=str(learned), normalize=False))
    images = sorted(photos.iterdir())[:5]
    assert short.spec.dim == 8
    np.testing.assert_allclose(short.embed(images), long.embed(images)[:, :8], atol=1e-4)


def test_whiten__does_not_ask_whether_embeddings_are_normalised(learned: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    assert run("whiten", MODEL, photos, "-o", out, *OPTIONS, "normalize=true").exit_code == 0
    encoder = load_encoder(MODEL, config())
    assert len({load_whitening(file, fingerprint=encoder.spec.fingerprint).sha256 for file in (out, learned)}) == 1


def test_whiten__mistakes_are_told_and_nothing_is_written(learned: Path, photos: Path, tmp_path: Path) -> None:
    common = ("whiten", MODEL, photos, "-o", tmp_path / "w.safetensors", *OPTIONS)
    assert "--dim 65 is more than the 64 numbers of an embedding" in refused(*common, "--dim", "65")
    assert "a whitening is learned from what is not whitened yet" in refused(*common, f"whitening={learned}")
    assert "unknown key 'unreadable'" in refused(*common, "unreadable=drop")
    few = write_images(tmp_path / "few", pictures(64))[0].parent
    message = refused("whiten", MODEL, few, "-o", tmp_path / "w.safetensors", *OPTIONS)
    assert "64 images are too few to whiten 64 dimensions; take several times more images than dimensions" in message
    write_images(few, {"bad.jpg": b""})
    message = refused("whiten", MODEL, few, "-o", tmp_path / "w.safetensors", *OPTIONS)
    assert f"1 of 65 images cannot be read, such as '{few}/bad.jpg': the file is empty" in message
    assert "has no folder to lie in" in refused("whiten", MODEL, photos, "-o", tmp_path / "no" / "w.safetensors")
    assert f"'{learned}' exists already; choose another -o" in refused("whiten", MODEL, photos, "-o", learned)
    assert not (tmp_path / "w.safetensors").exists()


def test_moments__in_batches_is_that_of_all() -> None:
    vectors = spread()
    whole = learn(vectors)
    parts = learn(*np.array_split(vectors, 7))
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-5)
    found = (vectors - whole.mean) @ whole.matrix
    np.testing.assert_allclose(covariance(found), np.eye(6), atol=1e-2)


def test_moments__axes_without_variance_stay_finite() -> None:
    flat = spread()
    flat[:, 3] = 2
    found = learn(flat, np.zeros((0, 6), np.float32))
    assert np.isfinite((flat - found.mean) @ found.matrix).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_moments__vectors_that_are_all_the_same_are_refused(value: float) -> None:
    with pytest.raises(EncoderError, match="the embeddings of 9 images are all the same"):
        learn(np.full((9, 6), value, np.float32))


def test_moments__too_few_vectors_are_refused() -> None:
    moments = Moments(6)
    moments.add(spread(count=6))
    with pytest.raises(EncoderError, match="6 images are too few to whiten 6 dimensions"):
        moments.whitening(fingerprint=FINGERPRINT)
    assert moments.whitening(fingerprint=FINGERPRINT, dim=5).matrix.shape == (6, 5)


def test_load_whitening__gives_back_what_was_saved(tmp_path: Path) -> None:
    made = learn(spread(), dim=4)
    made.save(tmp_path / "w.safetensors")
    found = load_whitening(tmp_path / "w.safetensors", fingerprint=FINGERPRINT)
    assert (found.sha256, found.fingerprint) == (made.sha256, FINGERPRINT)
    np.testing.assert_array_equal(found.matrix, made.matrix)


def test_whitening__its_hash_tells_others_apart() -> None:
    one, other = (learn(spread(seed)) for seed in (0, 1))
    assert one.sha256 != other.sha256
    assert one.sha256 == Whitening(one.mean.copy(), one.matrix.copy(), "another name").sha256


def test_load_whitening__other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"there is no whitening at '.*gone'; make one: mcbeit whiten MODEL SOURCE"):
        load_whitening(tmp_path / "gone", fingerprint=FINGERPRINT)
    (tmp_path / "noise").write_bytes(b"noise" * 50)
    with pytest.raises(EncoderError, match=r"the whitening '.*noise' cannot be read"):
        load_whitening(tmp_path / "noise", fingerprint=FINGERPRINT)
    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / "weights")
    with pytest.raises(EncoderError, match="holds no whitening"):
        load_whitening(tmp_path / "weights", fingerprint=FINGERPRINT)
    learn(spread()).save(tmp_path / "w")
    with pytest.raises(EncoderError, match="its fingerprint is ffffffffffff, this encoder's 000000000000"):
        load_whitening(tmp_path / "w", fingerprint="0" * 64)
