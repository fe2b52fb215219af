"""Prints the expected values of tests/test_detect.c: SciPy's and scikit-learn's answers to small
questions. Run it by hand where those are installed; the test itself needs no Python."""
import numpy as np
import scipy.stats as st
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

ROWS = np.array([
    0.126, 0.736, 2.32, 0.105, -0.071, 2.181, 1.304, 2.894, 1.648, -1.265, -0.247, 2.021,
    -2.325, 0.562, 1.377, -0.732, -0.089, 1.842, 0.412, 3.085, 1.936, 1.366, -0.33, 2.176,
    0.903, 1.188, 1.628, -0.922, 0.085, 2.11, -1.01, 0.582, 1.92, 0.541, 1.429, 2.178]).reshape(12, 3)
QUERY = np.array([-1.961, -0.389, 2.352])
NOISE = np.array([1.4934, -1.2591, 1.5139, 1.3459, 0.7813, 0.2645, -0.3139, 1.458, 1.9603, 1.8016,
                  1.3151, 0.3574, -1.2083, -0.0045, 0.6565, -1.2884, 0.3951, 0.4299, 0.696, -1.1841])


def anderson_darling(z):
    z, n = np.sort(z), len(z)
    i = np.arange(1, n + 1)
    return -n - np.mean((2 * i - 1) * (st.norm.logcdf(z) + st.norm.logsf(z[::-1])))


covariance = np.cov(ROWS.T)
covariance += np.eye(3) * 1e-6 * np.trace(covariance) / 3
offset = QUERY - ROWS.mean(0)
print("Mahalanobis %.15g" % (offset @ np.linalg.solve(covariance, offset)))
print("kernel density %.15g %.15g %.15g" % tuple(st.gaussian_kde(ROWS[:, 0]).logpdf([0.3, -2, 25])))
print("Anderson-Darling %.15g %.15g" % (anderson_darling(NOISE), anderson_darling(20 * NOISE)))
power = np.abs(np.fft.fft2(NOISE.reshape(4, 5))).ravel()[1:] ** 2
print("flatness %.15g" % (np.log(power).mean() - np.log(power.mean())))
pca = PCA(2, svd_solver="full").fit(ROWS)
offset = QUERY - pca.mean_
print("residual %.15g" % (offset @ offset - ((pca.components_ @ offset) ** 2).sum()))


def code_length(plane):
    """Of a plane of whole numbers, in nats: >>coder of flowood.h, bit by bit."""
    height, width = plane.shape
    one, seen, nats = {}, {}, 0.0

    def bit(context, name, value):
        nonlocal nats
        key = context, name
        p = one.get(key, 0.5)
        nats -= np.log(p if value else 1 - p)
        n = seen.get(key, 0)
        rate = 1 / (n + 2) if n < 48 else 0.02
        seen[key] = n + 1
        one[key] = min(max(p + rate * (value - p), 1e-3), 1 - 1e-3)

    for y in range(height):
        for x in range(width):
            def at(dy, dx, other):
                inside = 0 <= y + dy and 0 <= x + dx < width
                return int(plane[y + dy, x + dx]) if inside else other
            west = at(0, -1, at(-1, 0, 0))
            north = at(-1, 0, west)
            corner, east = (at(-1, -1, north), at(-1, 1, north)) if y else (north, north)
            guess = sorted((west, north, west + north - corner))[1]
            activity = abs(west - corner) + abs(corner - north) + abs(north - east)
            context = min(activity.bit_length(), 8)
            error = int(plane[y, x]) - guess
            size, bits = abs(error), abs(error).bit_length()
            bit(context, "zero", error == 0)
            if error == 0:
                continue
            bit(context, "sign", error < 0)
            for j in range(bits - 1):
                bit(context, ("size", j), 1)
            if bits < 8:
                bit(context, ("size", bits - 1), 0)
            if bits > 1:
                bit(context, ("next", bits), size >> (bits - 2) & 1)
                nats += (bits - 2) * np.log(2)
    return nats


c, y, x = np.ogrid[:3, :7, :9]
picture = (90 + 31 * y + 7 * x + y * x % 5 + c * (y % 3) * 40) % 256
print("code length: grey %.15g" % code_length(picture[0]), end=" ")
red, blue = ((picture[k] - picture[1] + 128) % 256 for k in (0, 2))
print("colour %.15g" % (code_length(picture[1]) + code_length(red) + code_length(blue)))

# ---- every score: fitted to 50 samples, asked about three others (test_every_score) ----

N, LAYERS, HEIGHT, WIDTH = 50, 3, 4, 6
SIZE = HEIGHT * WIDTH


def chance(sample, number):
    return np.fmod(1e4 * np.sin(12.9898 * (sample + 1) + 78.233 * (number + 1)), 1)


def mahalanobis(rows, query):
    cov = np.atleast_2d(np.cov(rows.T))
    cov += np.eye(len(cov)) * 1e-6 * np.trace(cov) / len(cov)
    offset = query - rows.mean(0)
    return offset @ np.linalg.solve(cov, offset)


def flatness(z):
    power = np.abs(np.fft.fft2(z.reshape(HEIGHT, WIDTH))).ravel()[1:] ** 2
    return np.log(power).mean() - np.log(power.mean())


sample = np.arange(N + 3)[:, None]
far = np.where(sample < N, 1, sample - N + 1)  # the three others lie further and further out
terms = far * 10 * chance(sample, np.arange(1 + LAYERS))
log_prob = terms.sum(1)
background = 10 * chance(sample[:, 0], 10)
gradient = far * chance(sample, 20 + np.arange(LAYERS))
z = far * sum(chance(sample, 100 * k + np.arange(SIZE)) for k in (1, 2, 3))
pixels = np.floor(128 + 120 * chance(sample, 500 + np.arange(SIZE))).astype(int)
pixels[:, -1] = 100 + pixels[:, -1] % 4  # what 23 components leave is this one's direction
length = np.array([code_length(p.reshape(HEIGHT, WIDTH)) for p in pixels])
states = np.stack([log_prob, terms[:, 0], log_prob - terms[:, 0]], 1)
normal = np.stack([[np.log(anderson_darling(i)) for i in z], [flatness(i) for i in z],
                   (z ** 2).sum(1)], 1)
components = PCA(SIZE - 1, svd_solver="full").fit(pixels[:N])
left = ((pixels - components.inverse_transform(components.transform(pixels))) ** 2).sum(1)
kde = [st.gaussian_kde(column) for column in states[:N].T]
near = NearestNeighbors(n_neighbors=1).fit(pixels[:N])
limit = np.quantile(length[:N], 0.95, method="lower")
views = np.stack([-log_prob - 5 * k * chance(sample[:, 0], 30 + k) -
                  np.minimum(length - 4 * k * chance(sample[:, 0], 40 + k), limit)
                  for k in range(4)], 1)
scores = {
    "likelihood": lambda i: -log_prob[i],
    "latent": lambda i: -terms[i, 0],
    "volume": lambda i: -terms[i, 1:].sum(),
    "typicality": lambda i: abs(-log_prob[i] + log_prob[:N].mean()),
    "complexity": lambda i: -log_prob[i] - min(length[i], limit),
    "orientation": lambda i: 2 * views[i, 0] - views[i].min(),
    "density-of-states": lambda i: -sum(k.logpdf(states[i, j])[0] for j, k in enumerate(kde)),
    "layers": lambda i: mahalanobis(terms[:N, 1:], terms[i, 1:]),
    "gradient": lambda i: -sum(st.norm(m, s).logpdf(g) - st.norm(m, s).logpdf(m) for m, s, g in
                               zip(gradient[:N].mean(0), gradient[:N].std(0, ddof=1), gradient[i])),
    "normality": lambda i: mahalanobis(normal[:N], normal[i]),
    "ratio": lambda i: background[i] - log_prob[i],
    "neighbour": lambda i: near.kneighbors(pixels[i:i + 1])[0][0, 0],
    "pca": lambda i: left[i]}
for name, score in scores.items():
    print('{"%s", {%s}},' % (name, ", ".join("%.12g" % score(N + k) for k in range(3))))
