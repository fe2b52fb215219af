"""Prints the expected values of test_vectors in tests/test_layers.c: the layers normalize and whiten
by NumPy. Run it by hand; the test itself needs no Python."""
import numpy as np

SHRINKAGES = 0.3, 0.1, 0.03, 0.01, 0.003, 0.001
samples, elements = np.arange(40)[:, None] + 1, np.arange(6)[None] + 1
X = 2 + np.fmod(1e4 * np.sin(12.9898 * samples + 78.233 * elements), 1) * 2.0 ** -elements
QUERY = np.array([2.2, 1.9, 2.05, 1.95, 2.02, 2.0])


def normalize(x):
    return x * np.sqrt(x.shape[-1]) / np.linalg.norm(x, axis=-1, keepdims=True)


def fit(x):
    w, v = np.linalg.eigh(np.cov(x.T, bias=True))
    return x.mean(0), w[::-1], v[:, ::-1]


def shrunk(w, s):
    return (1 - s) * w + s * w.mean()


def cost(x, held, s):
    mean, w, v = fit(x[~held])
    return np.mean(((x[held] - mean) @ v) ** 2 / shrunk(w, s) + np.log(shrunk(w, s)))


for name, before in ("whiten", lambda x: x), ("normalize, whiten", normalize):
    x = before(X)
    held = np.arange(len(x)) % 5 == 4
    s = min(SHRINKAGES, key=lambda s: cost(x, held, s))
    mean, w, v = fit(x)
    z = (before(QUERY) - mean) @ v / np.sqrt(shrunk(w, s))
    logdet = -np.log(shrunk(w, s)).sum() / 2
    print(name, "shrink", s, [round(cost(x, held, t), 3) for t in SHRINKAGES])
    print("|z|", ", ".join("%.12g" % abs(i) for i in z))
    print("logdet %.15g log_prob %.15g" % (logdet, logdet - z @ z / 2 - len(z) / 2 * np.log(2 * np.pi)))
