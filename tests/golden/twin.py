"""flowood's twin: the same flows written a second time, in PyTorch, from the same description.

The C library and this file share no code, so that where they agree both are probably right. make.py
writes what this file computes into small fixtures, which the C tests then read without Python.
Everything works in the number type of the parameters; the oracle uses float64.

    flow = Flow(text)                       the text that a flowood checkpoint carries
    z, terms = flow.encode(x, noise)        terms[:, 0] is the base density, terms[:, 1 + i] the
    log_prob = terms.sum(1)                 logdet of layer i; together they are log p(x) in nats
    x = flow.decode(z)

    python twin.py                          checks the twin against facts that need no other code
"""

import math

import numpy as np
import torch
from torch import nn

ACTIVATIONS = {"leaky_relu": lambda h: nn.functional.leaky_relu(h, 0.01),
               "relu": torch.relu, "tanh": torch.tanh,
               "softplus": lambda h: torch.logaddexp(h, torch.zeros(())),
               "none": lambda h: h}


# --- random numbers ---------------------------------------------------------------------------

def philox(seed, stream, index):
    """Philox 4x32-10 (Salmon et al. 2011): integers, or arrays of them, -> uint32 [..., 4]."""
    low = np.uint64(0xFFFFFFFF)
    seed, stream, index = np.broadcast_arrays(*(np.asarray(v, np.uint64)
                                                for v in (seed, stream, index)))
    c0, c1, c2, c3 = index & low, index >> 32, stream & low, stream >> 32
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def uniform(seed, stream, n):
    """Numbers 0..n-1 of a stream, in (0, 1): the middles of 2^23 equal cells, exact in float32."""
    bits = philox(seed, stream, np.arange((n + 3) // 4)).reshape(-1)[:n]
    return ((bits >> 9) + 0.5) / 2.0**23


def normal(seed, stream, n):
    """Numbers 0..n-1 of a stream, N(0, 1): two uniform numbers make two normal ones."""
    u = uniform(seed, stream, n + n % 2).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:n]


def noise(seed, index, draw, n):
    """Dequantization noise of sample `index`: it does not depend on the batch around the sample."""
    return uniform(seed, index + draw * 2**40 + 2**60, n)


def shuffle(seed, stream, values):
    """Fisher-Yates, from the last place down; each step takes 64 bits modulo what is left."""
    values = list(values)
    for i in range(len(values) - 1, 0, -1):
        low, high = philox(seed, stream, i)[:2]
        j = (int(high) << 32 | int(low)) % (i + 1)
        values[i], values[j] = values[j], values[i]
    return values


def epoch_order(seed, epoch, count):
    return shuffle(seed, epoch + 3 * 2**60, range(count))


# --- masks ------------------------------------------------------------------------------------

def mask(name, c, h, w):
    """"kind:phase" -> flat indices (conditioned on, changed), ascending; the others pass."""
    kind, phase = name.split(":")
    phase = int(phase)
    flat = torch.arange(c * h * w)
    channel, y, x = flat // (h * w), flat // w % h, flat % w
    if kind == "cycle":
        top, left = y < h // 2, x < w // 2
        quadrant = torch.where(top, torch.where(left, 0, 1), torch.where(left, 3, 2))
        return ((quadrant == phase % 4).nonzero()[:, 0],
                (quadrant == (phase + 1) % 4).nonzero()[:, 0])
    first = {"checkerboard": (y + x) % 2 == 0, "channel": channel < c // 2,
             "horizontal": y < h // 2, "vertical": x < w // 2,
             "halves": flat < len(flat) // 2, "alternating": flat % 2 == 0}.get(kind)
    if kind == "random":
        first = flat < len(flat) // 2
        first = torch.tensor(shuffle(0, phase // 2 + 5 * 2**60, first.tolist()))
    condition = first if phase % 2 == 0 else ~first
    return condition.nonzero()[:, 0], (~condition).nonzero()[:, 0]


# --- layers: encode returns (output, logdet of each sample), decode undoes it ---------------------

class Dequantize(nn.Module):
    """y = (x + u) / 256; Flow.encode has added u."""

    def encode(self, x):
        return x / 256, x.new_full((len(x),), -x.shape[1] * math.log(256))

    def decode(self, y):
        return (y * 256).floor().clamp(0, 255)


class Logit(nn.Module):
    """h = logit(v), v = 0.5 + (1 - 2 alpha)(y - 0.5): the unit interval becomes the real line."""

    def __init__(self, alpha):
        super().__init__()
        self.stretch = 1 - 2 * float(alpha)

    def encode(self, y):
        v = 0.5 + self.stretch * (y - 0.5)
        slope = math.log(self.stretch) - torch.log(v) - torch.log1p(-v)
        return torch.log(v) - torch.log1p(-v), slope.sum(1)

    def decode(self, h):
        return 0.5 + (torch.sigmoid(h) - 0.5) / self.stretch


class Standardize(nn.Module):
    """h = (x - mean) / std, one mean and std for each element."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("measured", torch.ones(1))

    def encode(self, x):
        return (x - self.mean) / self.std, -self.std.log().sum().expand(len(x))

    def decode(self, h):
        return h * self.std + self.mean


class Coupling(nn.Module):
    """y_c = (x_c + t) exp(s), s = scale tanh(raw_s), (raw_s, t) = net(x_id); additive: s = 0.

    The net is `depth` hidden layers on each side of a bottleneck, which is a linear layer with no
    activation after it; bottleneck=0 leaves one group of `depth` hidden layers.
    """

    def __init__(self, shape, affine, mask, net="mlp", hidden=512, depth=1, bottleneck=0,
                 act="leaky_relu"):
        super().__init__()
        assert net == "mlp"
        condition, changed = globals()["mask"](mask, *shape)
        self.register_buffer("condition", condition, persistent=False)
        self.register_buffer("changed", changed, persistent=False)
        self.affine, self.act = affine, ACTIVATIONS[act]

        hidden, depth, bottleneck = [int(hidden)], int(depth), int(bottleneck)
        size = [len(condition)] + hidden * depth
        self.linear_after = -1                       # the layer without an activation
        if bottleneck:
            self.linear_after = depth
            size += [bottleneck] + hidden * depth
        size.append(len(changed) * (2 if affine else 1))
        self.net = nn.ModuleList(nn.Linear(a, b) for a, b in zip(size, size[1:]))
        nn.init.zeros_(self.net[-1].weight)          # the flow starts as the identity
        nn.init.zeros_(self.net[-1].bias)
        if affine:                                   # one scale a channel; vectors: an element
            c, h, w = shape
            image = h * w > 1
            which = changed // (h * w) if image else torch.arange(len(changed))
            self.register_buffer("which", which, persistent=False)
            self.scale = nn.Parameter(torch.ones(c if image else len(changed)))

    def st(self, x):
        h = x[:, self.condition]
        for j, layer in enumerate(self.net):
            h = layer(h)
            if j != self.linear_after and j + 1 < len(self.net):
                h = self.act(h)
        if not self.affine:
            return torch.zeros_like(h), h
        raw_s, t = h.chunk(2, 1)
        return self.scale[self.which] * torch.tanh(raw_s), t

    def encode(self, x):
        s, t = self.st(x)
        return x.index_copy(1, self.changed, (x[:, self.changed] + t) * s.exp()), s.sum(1)

    def decode(self, y):
        s, t = self.st(y)
        return y.index_copy(1, self.changed, y[:, self.changed] * (-s).exp() - t)


class Flow(nn.ModuleList):
    """A flow from its text. As a list of layers it names them "{i}.scale", "{i}.net.{j}.bias"."""

    def __init__(self, text):
        super().__init__()
        words = [line.split() for line in text.splitlines() if line.strip()]
        assert words[0][0] == "input", "the first line must be: input CxHxW"
        shape = [int(v) for v in words[0][1].split("x")]
        self.text, self.shape = text, shape if len(shape) == 3 else shape + [1, 1]
        for kind, *options in words[1:]:
            options = dict(option.split("=") for option in options)
            self.append({"dequantize": lambda: Dequantize(),
                         "logit": lambda: Logit(**options),
                         "standardize": lambda: Standardize(math.prod(self.shape)),
                         "coupling": lambda: Coupling(self.shape, True, **options),
                         "additive": lambda: Coupling(self.shape, False, **options)}[kind]())

    def encode(self, x, noise=None):
        h = x.flatten(1).to(torch.get_default_dtype())
        if noise is not None:
            h = h + noise.flatten(1)
        logdets = []
        for layer in self:
            h, logdet = layer.encode(h)
            logdets.append(logdet)
        base = -0.5 * (h**2 + math.log(2 * math.pi)).sum(1)
        return h, torch.stack([base] + logdets, 1)

    def decode(self, z):
        for layer in reversed(self):
            z = layer.decode(z)
        return z

    def log_prob(self, x, noise=None):
        return self.encode(x, noise)[1].sum(1)


def mlp_flow(kind, couplings=8, bottleneck=10, shape="1x28x28"):
    """The text of the mlp-* presets: couplings of one mask kind with phases 0, 1, 2, ..."""
    phases = 4 if kind == "cycle" else 2
    lines = [f"input {shape}", "dequantize", "logit alpha=0.05"]
    lines += [f"coupling mask={kind}:{i % phases} net=mlp hidden=512 depth=1 "
              f"bottleneck={bottleneck} act=leaky_relu" for i in range(couplings)]
    return "\n".join(lines) + "\n"


def randomize(flow, seed):
    """Weights a trained flow might have: nothing zero, nothing equal, all exact in float32."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in flow.state_dict().items():
            if name.endswith("measured"):
                continue
            value = torch.randn(p.shape, generator=random)
            if name.endswith((".scale", ".std")):
                value = 0.5 + torch.rand(p.shape, generator=random)
            elif name.endswith("weight"):
                value = 0.5 * value / math.sqrt(p.shape[1])
            else:
                value = 0.2 * value
            p.copy_(value.float())
    return flow


# --- checks -------------------------------------------------------------------------------------

def check():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    for index, stream, seed, want in (     # the known answers published with Philox
            (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            (2**64 - 1, 2**64 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            (0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822,
             "d16cfe09 94fdcceb 5001e420 24126ea1")):
        assert " ".join(f"{v:08x}" for v in philox(seed, stream, index)) == want

    lines = ["coupling mask=" + m for m in ("checkerboard:0", "channel:1", "horizontal:0",
             "vertical:1", "cycle:2", "halves:0", "alternating:1")]
    lines[2:2] = ["standardize", "additive mask=checkerboard:1 hidden=7 depth=2 act=tanh"]
    flow = randomize(Flow("\n".join(["input 2x3x4", "logit alpha=0.05"] + lines)), 1)
    x = torch.rand(2, 24)
    z, terms = flow.encode(x)
    assert torch.allclose(flow.decode(z), x, atol=1e-9)
    for i in range(2):                     # the logdet against the whole Jacobian matrix
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v[None])[0][0], x[i])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], terms[i, 1:].sum(), atol=1e-9)

    flow = Flow("input 1x1x2\ndequantize\nlogit alpha=0.0001\ncoupling mask=halves:0 hidden=8")
    randomize(flow, 2)                     # p of the 8-bit images sums to 1 over all 256^2 of them
    images = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    total = sum(flow.log_prob(images, torch.rand(65536, 2)).exp().mean() for _ in range(20))
    assert abs(total * 65536 / 20 - 1) < 0.01, total
    x = images[::7]
    assert torch.equal(flow.decode(flow.encode(x, torch.rand(len(x), 2))[0]).long(), x)
    print("twin: all checks passed")


if __name__ == "__main__":
    check()
