"""Prints the expected values of tests/test_detect.c: SciPy's and scikit-learn's answers to small
questions. Run it by hand where those are installed; the test itself needs no Python."""
import numpy as np
import scipy.stats as st
from sklearn.decomposition import PCA

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
print("colour %.15g" % (code_length(picture[1]) + code_length((picture[0] - picture[1] + 128) % 256) +
                        code_length((picture[2] - picture[1] + 128) % 256)))
