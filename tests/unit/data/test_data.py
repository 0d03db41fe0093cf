"""Data sources, split, normalisation and lazy reading."""

import dataclasses
import gzip

import h5py
import numpy as np
import pytest
from sklearn import datasets

from ringtmp.data.dataset import epoch_order, open_data
from ringtmp.data.formats.idx import read_idx
from ringtmp.data.sources import open_source
from ringtmp.errors import UserError

F64 = np.dtype(np.float64)


def read_all(data, split, n):
    x = np.empty((n, int(np.prod(data.info.sample_shape))))
    y = np.empty(n, np.int64) if data.info.target == "classes" else np.empty((n, data.info.outputs))
    data.read(split, np.arange(n), x, y)
    return x, y


def both(data):
    train, test = read_all(data, "train", data.info.n_train), read_all(data, "test", data.info.n_test)
    return (*train, *test)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("digits", datasets.load_digits),
        ("breast-cancer", datasets.load_breast_cancer),
        ("diabetes", lambda **k: datasets.load_diabetes(scaled=False, **k)),
    ],
)
def test_bundled_sets_are_scikit_learns(name, load):
    source = open_source(name)
    x, y = load(return_X_y=True)
    np.testing.assert_array_equal(source.x, x)
    np.testing.assert_array_equal(source.y, y)


def test_split_and_normalisation():
    """One fifth is held out, whatever the seed; mean 0 and deviation 1 over the training samples, per feature."""
    data = open_data("breast-cancer", dtype=F64)
    assert (data.info.n_train, data.info.n_test) == (455, 114)
    x, y, x_test, y_test = both(data)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-9)
    raw = datasets.load_breast_cancer().data
    stated = data.info.normalisation
    back = np.concatenate([x, x_test]) * stated["std"] + stated["mean"]
    np.testing.assert_allclose(np.sort(back, axis=0), np.sort(raw, axis=0), rtol=1e-9, atol=1e-9)
    assert len(y) + len(y_test) == len(raw)


def test_images_have_one_scale():
    data = open_data("digits", dtype=F64)
    assert data.info.normalisation["kind"] == "global"
    x = read_all(data, "train", data.info.n_train)[0]
    assert abs(x.mean()) < 1e-9
    assert abs(x.std() - 1) < 1e-9


def test_targets_of_values_are_normalised():
    data = open_data("diabetes", dtype=F64)
    y = read_all(data, "train", data.info.n_train)[1]
    assert abs(y.mean()) < 1e-9
    assert abs(y.std() - 1) < 1e-9
    assert data.info.outputs == 1


def test_stated_normalisation_is_used():
    """A resume keeps the numbers of its checkpoint."""
    stated = {"kind": "global", "mean": 2.0, "std": 4.0}
    x = np.arange(40.0).reshape(20, 2)
    arrays = (x, np.arange(20) % 2, x, np.arange(20) % 2)
    old = open_data(arrays, dtype=F64).info
    data = open_data(arrays, dtype=F64, like=dataclasses.replace(old, normalisation=stated))
    np.testing.assert_array_equal(read_all(data, "train", 20)[0], (x - 2) / 4)
    none = open_data((x, np.arange(20) % 2, x, np.arange(20) % 2), dtype=F64, normalise="none")
    np.testing.assert_array_equal(read_all(none, "train", 20)[0], x)


def test_constant_feature_stays_finite():
    x = np.stack([np.full(30, 7.0), np.arange(30)], axis=1)
    data = open_data((x, np.arange(30) % 3), dtype=F64)
    assert np.isfinite(both(data)[0]).all()


def test_order():
    """Every sample once an epoch; another epoch or seed, another order; the same again for the same."""
    a, b, c = epoch_order(0, 0, 100), epoch_order(0, 1, 100), epoch_order(1, 0, 100)
    np.testing.assert_array_equal(np.sort(a), np.arange(100))
    np.testing.assert_array_equal(a, epoch_order(0, 0, 100))
    assert (a != b).any()
    assert (a != c).any()


# ---- files -----------------------------------------------------------------------------------------------------------


def write_idx(path, array, code):
    content = bytes([0, 0, code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(content)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("test_set", [False, True])
def test_idx_folder(tmp_path, ending, test_set):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (50, 4, 5), np.uint8), np.arange(50, dtype=np.uint8) % 10
    for prefix in ["train", "t10k"][: 1 + test_set]:
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{ending}", images, 8)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{ending}", labels, 8)
    data = open_data(str(tmp_path), dtype=F64, normalise="none")
    assert data.info.sample_shape == (4, 5)
    assert (data.info.n_train, data.info.n_test) == ((50, 50) if test_set else (40, 10))
    if test_set:
        x, y = read_all(data, "train", 50)
        np.testing.assert_array_equal(x, images.reshape(50, 20))
        np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize(("dtype", "code"), [("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)])
def test_idx_types(tmp_path, dtype, code):
    array = np.arange(-3, 9).reshape(3, 4).astype(dtype)
    write_idx(tmp_path / "a-idx2", array, code)
    np.testing.assert_array_equal(read_idx(tmp_path / "a-idx2"), array)


def test_idx_cut_anywhere(tmp_path):
    path = tmp_path / "a-idx2"
    write_idx(path, np.arange(12, dtype=np.uint8).reshape(3, 4), 8)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="a-idx2"):
            read_idx(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="25 bytes"):
        read_idx(path)


def test_gz_cut_or_flipped(tmp_path):
    path = tmp_path / "a-idx2.gz"
    write_idx(path, np.arange(200, dtype=np.uint8).reshape(20, 10), 8)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="a-idx2"):
            read_idx(path)
    for place in range(10, len(whole)):  # the gzip header holds a time and a name, which nothing checks
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            array = read_idx(path)
        except UserError:
            continue
        np.testing.assert_array_equal(array, np.arange(200, dtype=np.uint8).reshape(20, 10))


def test_labels_without_images(tmp_path):
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8), 8)
    with pytest.raises(UserError, match="no train-images beside it"):
        open_source(str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="no IDX files"):
        open_source(str(tmp_path))


def made(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3, 2)).astype(np.float32) * 5 + 1, rng.integers(0, 4, n)


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(min(16, len(array)), *array.shape[1:]))


@pytest.mark.parametrize("test_set", [False, True])
def test_npz_and_hdf5_give_the_same(tmp_path, test_set):
    x, y = made()
    arrays = {"x": x, "y": y} | ({"x_test": x[:50], "y_test": y[:50]} if test_set else {})
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    write_h5(tmp_path / "a.h5", **arrays)
    first, *others = [open_data(str(tmp_path / name), dtype=F64) for name in ("a.npz", "b.npz", "a.h5")]
    for other in others:
        assert other.info.n_test == first.info.n_test
        for mine, theirs in zip(both(first), both(other), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        rows = epoch_order(3, 1, first.info.n_train)[:37]
        got = [np.empty((37, 6)), np.empty((37, 6))]
        for data, out in zip((first, other), got, strict=True):
            data.read("train", rows, out, np.empty(37, np.int64))
        np.testing.assert_allclose(*got, rtol=1e-12)


def test_hdf5_is_read_lazily(tmp_path, monkeypatch):
    """After the pass that measures, only the rows asked for are read."""
    x, y = made(2000)
    write_h5(tmp_path / "a.h5", x=x, y=y)
    data = open_data(str(tmp_path / "a.h5"), dtype=F64)
    asked = []
    whole = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key, **k: _note(asked, whole(self, key, **k)))
    rows = epoch_order(0, 0, data.info.n_train)[:32]
    data.read("train", rows, np.empty((32, 6)), np.empty(32, np.int64))
    assert asked
    assert max(asked) <= 32
    data.read("train", np.arange(100, 132), np.empty((32, 6)), np.empty(32, np.int64))
    assert max(asked) <= 4 * 32


def _note(asked, block):
    asked.append(len(block))
    return block


def test_hdf5_of_values(tmp_path):
    x, _ = made()
    y = np.random.default_rng(5).standard_normal((400, 3))
    write_h5(tmp_path / "a.h5", x=x, y=y)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    lazy, ready = (both(open_data(str(tmp_path / name), dtype=F64)) for name in ("a.h5", "a.npz"))
    for mine, theirs in zip(lazy, ready, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_measuring_in_blocks(monkeypatch):
    """Mean and deviation do not depend on how the pass is cut."""
    x, y = made(1000)
    whole = open_data((x, y), dtype=F64).info.normalisation
    monkeypatch.setattr("ringtmp.data.measure._BLOCK", 6 * 8 * 7)
    cut = open_data((x, y), dtype=F64).info.normalisation
    assert whole["kind"] == "global"
    np.testing.assert_allclose(cut["mean"], whole["mean"], rtol=1e-12)
    np.testing.assert_allclose(cut["std"], whole["std"], rtol=1e-12)


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_files_cut_short(tmp_path, name):
    x, y = made()
    np.savez(tmp_path / "a.npz", x=x, y=y)
    write_h5(tmp_path / "a.h5", x=x, y=y)
    path = tmp_path / name
    whole = path.read_bytes()
    for length in [0, 1, 3, *range(10, len(whole), len(whole) // 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=name):
            open_data(str(path), dtype=F64)


X, Y = made(60)
BAD = {
    "no samples": ((X[:0], Y[:0]), "empty"),
    "lengths differ": ((X, Y[:-1]), "60 samples but y has 59"),
    "flat x": ((X[:, 0, 0], Y), "samples by features"),
    "no features": ((X[:, :0], Y), "samples by features"),
    "text": ((X.astype(str), Y), "expected numbers"),
    "objects": ((np.array([[object()]] * 60), Y), "expected numbers"),
    "label rows": ((X, np.stack([Y, Y], axis=1)), "one label"),
    "one class": ((X, np.zeros(60, int)), "one class only"),
    "infinity": ((np.where(X > 7, np.inf, X), Y), "NaN or infinity"),
    "NaN in the target": ((X, np.where(Y == 2, np.nan, Y)), "y has NaN"),
    "negative label": ((X, Y - 1), "label -1"),
    "test set of another shape": ((X, Y, X[:, :2], Y), "shapes of x and y"),
    "test set of another kind": ((X, Y, X, Y + 0.5), "type float64"),
    "NaN in the test set": ((X, Y, np.full_like(X, np.nan), Y), "NaN"),
    "three arrays": ((X, Y, X), "got 3 arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case):
    arrays, words = BAD[case]
    with pytest.raises(UserError, match=words):
        open_data(arrays, dtype=F64)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", "did you mean digits"),
        ("missing.npz", "no such file"),
        ("missing.h5", "no such file"),
        ("synthetic:sample=3", "unknown key 'sample'"),
        ("synthetic:samples=x", "must be a number"),
        ("synthetic:samples=1", "at least 2"),
        ("synthetic:noise=nan", "at least 0"),
        ("/etc/hostname", "expected digits"),
    ],
)
def test_bad_names(spec, words):
    with pytest.raises(UserError, match=words):
        open_source(spec)


def test_missing_keys(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, labels=Y)
    with pytest.raises(UserError, match="has no 'y'; it holds x, labels"):
        open_source(str(tmp_path / "a.npz"))
    write_h5(tmp_path / "a.h5", x=X, y=Y, x_test=X)
    with pytest.raises(UserError, match="expected both or neither"):
        open_source(str(tmp_path / "a.h5"))


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}] * 4), y=np.arange(4))
    with pytest.raises(UserError, match=r"a\.npz"):
        open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_empty_split(fraction):
    with pytest.raises(UserError, match="test_fraction"):
        open_data((X, Y), dtype=F64, test_fraction=fraction)


def test_synthetic():
    """The same for the same text; another seed, other numbers; classes in equal shares."""
    one, same, other = (open_source(f"synthetic:samples=90,features=5,classes=3,seed={s}") for s in (1, 1, 2))
    np.testing.assert_array_equal(one.x, same.x)
    assert (one.x != other.x).any()
    assert np.bincount(one.y).tolist() == [30, 30, 30]
    values = open_source("synthetic:samples=50,features=4,outputs=2")
    assert values.y.shape == (50, 2)


# ---- text ------------------------------------------------------------------------------------------------------------


def text_data(tmp_path, content, spec="", context=4, fraction=0.25):
    path = tmp_path / "a.txt"
    path.write_text(content, encoding="utf-8")
    return open_data(f"text:{path}{spec}", dtype=np.dtype("f4"), test_fraction=fraction, context=context)


def test_text(tmp_path):
    """Windows in the order of the text, each place labelled with what follows; the end of the text is the test set."""
    content = "the cat sat on é mat."
    data = text_data(tmp_path, content)
    info = data.info
    assert info.alphabet == "".join(sorted(set(content)))
    assert (info.outputs, info.labels, info.sample_shape, info.n_train, info.n_test) == (12, 4, (4,), 4, 1)
    x, y = np.empty((1, 4), np.int64), np.empty((1, 4), np.int64)
    for n in range(5):
        data.read("train" if n < 4 else "test", np.array([n if n < 4 else 0]), x, y)
        assert "".join(info.alphabet[t] for t in x[0]) == content[4 * n : 4 * n + 4]
        assert "".join(info.alphabet[t] for t in y[0]) == content[4 * n + 1 : 4 * n + 5]
    assert type(info).from_json(info.to_json()) == info
    assert text_data(tmp_path, content, ",context=4", 0).info.digest == info.digest


@pytest.mark.parametrize(
    ("content", "spec", "context", "words"),
    [
        ("abc " * 20, "", 0, "how long is a sample"),
        ("abc " * 20, ",context=5", 4, "context 5 differs from the model's 4"),
        ("abc " * 20, ",context=x", 0, "expected text:FILE"),
        ("abc " * 20, ",length=3", 0, "expected text:FILE"),
        ("abc " * 20, ",context=1", 0, "context of at least 2"),
        ("abc", "", 4, "too few"),
        ("a" * 50, "", 4, "too few"),
        ("", "", 4, "too few"),
    ],
)
def test_text_that_cannot_be_used(tmp_path, content, spec, context, words):
    with pytest.raises(UserError) as caught:
        text_data(tmp_path, content, spec, context)
    assert words in str(caught.value)


def test_text_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.txt: cannot be read"):
        open_data(f"text:{tmp_path}/none.txt", dtype=np.dtype("f4"), context=4)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00" * 30)
    with pytest.raises(UserError, match="not a text in UTF-8"):
        open_data(f"text:{tmp_path}/bytes", dtype=np.dtype("f4"), context=4)
