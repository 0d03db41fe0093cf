"""TEMPORARY stand-in while the real module is being written."""
from dataclasses import dataclass, asdict
import numpy as np
@dataclass(frozen=True)
class DataInfo:
    name: str
    sample_shape: tuple
    target: str
    outputs: int
    n_train: int
    n_test: int
    normalisation: dict
    def to_json(self): return asdict(self)
    @classmethod
    def from_json(cls, d): return cls(**{**d, "sample_shape": tuple(d["sample_shape"])})
class DataSet:
    def __init__(self, info, parts): self.info, self.parts = info, parts
    def read(self, split, idx, x, y):
        X, Y = self.parts[split]
        np.take(X, idx, axis=0, out=x); np.take(Y, idx, axis=0, out=y)
def open_data(spec, *, dtype, normalise="auto", test_fraction=0.2, normalisation=None, progress=None):
    if spec == "digits":
        from sklearn.datasets import load_digits
        X, y = load_digits(return_X_y=True); k = "classes"; o = 10
        X = (X - X.mean()) / X.std()
    else:
        kw = dict(p.split("=") for p in spec.split(":")[1].split(","))
        n, f = int(kw["samples"]), int(kw["features"]); r = np.random.default_rng(int(kw.get("seed", 0)))
        if "classes" in kw:
            o = int(kw["classes"]); y = np.arange(n) % o; X = r.standard_normal((o, f))[y] + r.standard_normal((n, f)); k = "classes"
        else:
            o = int(kw["outputs"]); X = r.standard_normal((n, f)); y = X @ r.standard_normal((f, o)); k = "values"
    p = np.random.default_rng(1).permutation(len(X)); t = round(len(X) * test_fraction)
    X = X.astype(dtype); y = y.astype(np.int64 if k == "classes" else dtype)
    return DataSet(DataInfo(spec, X.shape[1:], k, o, len(X) - t, t, {}), {"train": (X[p[t:]], y[p[t:]]), "test": (X[p[:t]], y[p[:t]])})
def epoch_order(seed, epoch, n): return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(n)
