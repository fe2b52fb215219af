"""The twin of the image models: convolutional st-networks, and the layers of RealNVP and Glow.

It goes on where twin.py ends: same text, same conventions, activations [B, D] in channel-major
order between layers. Names of parameters are PyTorch's for the modules below.

    flow = Flow(text)                       also presets: Flow(preset("realnvp-small"))
    flow.norms("train")                     batch norm: train, running, batch, average
    z, terms = flow.encode(x, noise)        z = what came through, then what the splits took out,
                                            the last split first; flow.places() says from where

    python twin_image.py                    checks the twin against facts that need no other code
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import twin

STREAM_PERMUTE = 7 * 2**60


# --- parts of st-networks -----------------------------------------------------------------------

def weight_norm(v, g):
    """w[o] = g[o] v[o] / |v[o]|"""
    return g * v / v.flatten(1).norm(dim=1).view(g.shape)


def fan(shape):
    """Weights as PyTorch starts them: uniform, +-1/sqrt(inputs of one output)."""
    return (2 * torch.rand(shape) - 1) / math.sqrt(math.prod(shape[1:]))


class WNConv(nn.Module):
    """A convolution that keeps the size, its weights' length and direction apart."""

    def __init__(self, inputs, outputs, kernel, bias=True):
        super().__init__()
        v = fan((outputs, inputs, kernel, kernel))
        self.weight_g = nn.Parameter(v.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        self.weight_v = nn.Parameter(v)
        self.bias = nn.Parameter(fan(v.shape)[:, 0, 0, 0].clone()) if bias else None

    def forward(self, x):
        return F.conv2d(x, weight_norm(self.weight_v, self.weight_g), self.bias,
                        padding=self.weight_v.shape[2] // 2)


class Norm(nn.Module):
    """Batch norm over B, H, W. mode: train (this batch's statistics, remembered), batch (this
    batch's, not remembered), running (the remembered), average (as batch, and the remembered ones
    become the plain mean over the batches since reset())."""

    eps, momentum = 1e-5, 0.1

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.mode = "running"

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.mode != "running":
            mean = x.mean((0, 2, 3))
            var = ((x - mean[:, None, None])**2).mean((0, 2, 3))
            if self.mode != "batch":
                self.remember(mean.detach(), var.detach(), x.numel() / x.shape[1])
        x = (x - mean[:, None, None]) / torch.sqrt(var + self.eps)[:, None, None]
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    def remember(self, mean, var, count):
        self.num_batches_tracked += 1
        part = self.momentum if self.mode == "train" else 1 / self.num_batches_tracked
        self.running_mean += part * (mean - self.running_mean)
        self.running_var += part * (var * count / (count - 1) - self.running_var)

    def reset(self):
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()


def zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# --- st-networks: inputs (channels, height, width) -> outputs maps of the same size -------------

class Block(nn.Module):
    def __init__(self, channels, norm=Norm):
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = WNConv(channels, channels, 3, bias=False)
        self.norm2 = norm(channels)
        self.conv2 = WNConv(channels, channels, 3)

    def forward(self, h):
        inner = self.conv1(torch.relu(self.norm1(h)))
        return h + self.conv2(torch.relu(self.norm2(inner)))


class ResNet(nn.Module):
    """Skips lead from the stem and from every block to the end; a neck sits in the middle."""

    def __init__(self, shape, outputs, double=False, channels=64, blocks=6, neck=0, skip=None,
                 norm=1):
        super().__init__()
        (inputs, height, width), channels = shape, int(channels)
        blocks, neck = int(blocks), int(neck)
        skip = not neck if skip is None else bool(int(skip))
        assert not (skip and neck), "the skips would go round the neck"
        self.factor, self.half = 2 if double and int(norm) else 1, max(blocks // 2, 1) - 1
        norm = Norm if int(norm) else nn.Identity
        self.in_norm = norm(inputs)
        self.in_conv = WNConv(2 * inputs, channels, 3)
        self.blocks = nn.ModuleList(Block(channels, norm) for _ in range(blocks))
        if skip:
            self.skips = nn.ModuleList(WNConv(channels, channels, 1) for _ in range(blocks + 1))
        if neck:
            size = channels * height * width
            self.neck = nn.ModuleList([nn.Linear(size, neck), nn.Linear(neck, size)])
        self.out_norm = norm(channels)
        self.out_conv = WNConv(channels, outputs, 1)

    def forward(self, x):
        h = self.factor * self.in_norm(x)
        h = self.in_conv(torch.relu(torch.cat([h, -h], 1)))
        skips = hasattr(self, "skips")
        total = self.skips[0](h) if skips else 0
        for j, block in enumerate(self.blocks):
            h = block(h)
            if skips:
                total = total + self.skips[j + 1](h)
            if j == self.half and hasattr(self, "neck"):
                h = self.neck[1](self.neck[0](h.flatten(1))).view(h.shape)
        return self.out_conv(torch.relu(self.out_norm(total if skips else h)))


class Autoencoder(nn.Module):
    """4x4 convolutions to a quarter of the size, a linear neck, and the way back."""

    def __init__(self, shape, outputs, double=False, channels=32, neck=100):
        super().__init__()
        (inputs, height, width), c, neck = shape, int(channels), int(neck)
        assert height % 4 == 0 and width % 4 == 0, "height and width must be multiples of 4"
        sizes = [inputs, c, 2 * c, 2 * c, 4 * c]
        how = [dict(stride=s, padding=p) for s, p in ((1, 2), (1, 1), (2, 1), (2, 1))]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, **k)
                                  for a, b, k in zip(sizes, sizes[1:], how))
        size = 4 * c * (height // 4) * (width // 4)
        self.neck = nn.ModuleList([nn.Linear(size, neck), nn.Linear(neck, size)])
        sizes[0] = outputs
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, **k)
                                for a, b, k in list(zip(sizes, sizes[1:], how))[::-1])
        zero(self.up[-1])

    def forward(self, x):
        act, h = twin.ACTIVATIONS["leaky_relu"], x
        for layer in self.down:
            h = act(layer(h))
        h = act(self.neck[1](self.neck[0](h.flatten(1)))).view(h.shape)
        for layer in self.up[:-1]:
            h = act(layer(h))
        return self.up[-1](h)


class HighwayLayer(nn.Module):
    """A gate of its own decides, element by element, between the new and the old."""

    def __init__(self, channels, act):
        super().__init__()
        self.act = act
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h):
        gate = torch.sigmoid(self.gate(h))
        return gate * self.act(self.conv(h)) + (1 - gate) * h


class Highway(nn.Module):
    def __init__(self, shape, outputs, double=False, channels=200, depth=3, act="relu"):
        super().__init__()
        channels, self.act = int(channels), twin.ACTIVATIONS[act]
        self.in_conv = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.highway = nn.ModuleList(HighwayLayer(channels, self.act) for _ in range(int(depth)))
        self.out_conv = zero(nn.Conv2d(channels, outputs, 1))

    def forward(self, x):
        h = self.act(self.in_conv(x))
        for layer in self.highway:
            h = layer(h)
        return self.out_conv(h)


class GlowNet(nn.Module):
    def __init__(self, shape, outputs, double=False, channels=512):
        super().__init__()
        channels = int(channels)
        self.conv1 = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.conv3 = zero(nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, x):
        return self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


NETS = {"resnet": ResNet, "autoencoder": Autoencoder, "highway": Highway, "glow": GlowNet}


# --- layers: encode returns (output, logdet of each sample) -------------------------------------

class Rescale(nn.Module):
    """One learned factor a channel, weight-normed: a length and, of one number, only a sign."""

    def __init__(self, channels):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(channels, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.weight_g * (self.weight_v / self.weight_v.abs())


class Coupling(nn.Module):
    """y = (x + t) exp(s) on the changed elements; the net sees what they are conditioned on.

    Under a channel mask the net sees those channels alone and answers for the others; under every
    other mask it sees the whole sample with zeros where it must not look, and answers for every
    element, changed or not.
    """

    def __init__(self, shape, affine, mask, net, **options):
        super().__init__()
        condition, changed = twin.mask(mask, *shape)
        assert len(condition) and len(changed), "this mask leaves nothing to do"
        c, h, w = self.shape = shape
        sees, gives = torch.zeros(c * h * w), torch.zeros(c * h * w)
        sees[condition], gives[changed] = 1, 1
        self.register_buffer("sees", sees.view(shape), persistent=False)
        self.register_buffer("gives", gives.view(shape), persistent=False)
        kind, phase = mask.split(":")
        self.begin, self.end = 0, c              # the channels that s and t are about
        self.seen = slice(0, c)
        if kind == "channel":
            first = slice(0, c // 2), slice(c // 2, c)
            self.seen, other = first[::-1] if int(phase) % 2 else first
            self.begin, self.end = other.start, other.stop
        maps = self.end - self.begin
        if affine:
            self.rescale = Rescale(maps)
        self.affine = affine
        self.net = NETS[net]((self.seen.stop - self.seen.start, h, w),
                             2 * maps if affine else maps, kind == "checkerboard", **options)

    def st(self, x):
        """s and t [B, C, H, W], zero where nothing changes"""
        out = self.net((x * self.sees)[:, self.seen])
        raw_s, t = out.chunk(2, 1) if self.affine else (None, out)
        s = self.rescale(torch.tanh(raw_s)) if self.affine else torch.zeros_like(t)
        around = (0, 0, 0, 0, self.begin, self.shape[0] - self.end)
        return F.pad(s, around) * self.gives, F.pad(t, around) * self.gives

    def encode(self, x):
        x = x.view(-1, *self.shape)
        s, t = self.st(x)
        return ((x + t) * s.exp()).flatten(1), s.sum((1, 2, 3))

    def decode(self, y):
        y = y.view(-1, *self.shape)
        s, t = self.st(y)
        return (y * (-s).exp() - t).flatten(1)


class Squeeze(nn.Module):
    """2x2 pixels become four channels: c*4 + 2*dy + dx, or by diagonals, order=alt: p*C + c."""

    def __init__(self, shape, order="plain", back=False):
        super().__init__()
        c, h, w = shape
        self.back = back
        if back:
            assert c % 4 == 0, "unsqueeze needs a multiple of 4 channels"
            self.shape, (c, h, w) = shape, (c // 4, 2 * h, 2 * w)
            self.out_shape = (c, h, w)
        else:
            assert h % 2 == 0 and w % 2 == 0, "squeeze needs an even height and width"
            self.shape, self.out_shape = shape, (4 * c, h // 2, w // 2)
        flat = torch.arange(c * h * w).view(c, h, w)
        corners = [(0, 0), (0, 1), (1, 0), (1, 1)] if order == "plain" else \
                  [(0, 0), (1, 1), (0, 1), (1, 0)]
        parts = torch.stack([flat[:, dy::2, dx::2] for dy, dx in corners])   # 4, C, H/2, W/2
        source = parts.transpose(0, 1) if order == "plain" else parts
        source = source.flatten()
        self.register_buffer("source", source.argsort() if back else source, persistent=False)

    def encode(self, x):
        return x[:, self.source], x.new_zeros(len(x))

    def decode(self, y):
        return y[:, self.source.argsort()]


class Split(nn.Module):
    """The second half of the channels goes to the latent; Flow.encode takes it away."""

    def __init__(self, shape):
        super().__init__()
        assert shape[0] % 2 == 0, "split needs an even number of channels"
        self.out_shape = (shape[0] // 2, *shape[1:])


class ActNorm(nn.Module):
    """y = (x + bias) exp(log_scale), one of each a channel; the first batch sets them."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(shape[0]))
        self.register_buffer("measured", torch.zeros(1))

    def measure(self, x):
        """After this the batch has mean 0 and deviation 1, but constant channels stay small."""
        mean = x.mean((0, 2, 3))
        std = ((x - mean[:, None, None])**2).mean((0, 2, 3)).sqrt()
        with torch.no_grad():
            self.bias.copy_(-mean)
            self.log_scale.copy_(torch.where(std > 1e-3, -std.clamp(min=1e-3).log(), 0 * std))
        self.measured.fill_(1)

    def encode(self, x):
        x = x.view(-1, *self.shape)
        if not self.measured:
            self.measure(x.detach())
        y = (x + self.bias[:, None, None]) * self.log_scale.exp()[:, None, None]
        return y.flatten(1), (self.log_scale.sum() * math.prod(self.shape[1:])).expand(len(x))

    def decode(self, y):
        y = y.view(-1, *self.shape) * (-self.log_scale).exp()[:, None, None]
        return (y - self.bias[:, None, None]).flatten(1)


class Conv1x1(nn.Module):
    """y[o] = sum of weight[o, i] x[i] over channels at every pixel; lu=1 keeps the factors."""

    def __init__(self, shape, lu=0):
        super().__init__()
        c, self.shape, self.lu = shape[0], shape, bool(int(lu))
        weight = torch.linalg.qr(torch.randn(c, c))[0]
        if not self.lu:
            self.weight = nn.Parameter(weight)
            return
        p, lower, upper = torch.linalg.lu(weight)            # weight = p lower upper
        diagonal = upper.diagonal()
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diag = nn.Parameter(diagonal.abs().log())
        self.register_buffer("sign", diagonal.sign())
        self.register_buffer("order", p.argmax(1))

    def matrix(self):
        if not self.lu:
            return self.weight, torch.linalg.slogdet(self.weight)[1]
        lower = torch.eye(len(self.sign)) + self.lower.tril(-1)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diag.exp())
        return (lower @ upper)[self.order], self.log_diag.sum()

    def encode(self, x):
        weight, logdet = self.matrix()
        y = torch.einsum("oi,bip->bop", weight, x.view(len(x), self.shape[0], -1))
        return y.flatten(1), (logdet * math.prod(self.shape[1:])).expand(len(x))

    def decode(self, y):
        weight = torch.linalg.inv(self.matrix()[0])
        x = torch.einsum("oi,bip->bop", weight, y.view(len(y), self.shape[0], -1))
        return x.flatten(1)


class Permute(nn.Module):
    """y[j] = x[order[j]], whole channels."""

    def __init__(self, shape, seed=0, reverse=0):
        super().__init__()
        self.shape, places = shape, range(shape[0])
        order = places[::-1] if int(reverse) else twin.shuffle(int(seed), STREAM_PERMUTE, places)
        self.register_buffer("order", torch.tensor(list(order)), persistent=False)

    def encode(self, x):
        return x.view(-1, *self.shape)[:, self.order].flatten(1), x.new_zeros(len(x))

    def decode(self, y):
        return y.view(-1, *self.shape)[:, self.order.argsort()].flatten(1)


class Flow(twin.Flow):
    """A flow from its text; every layer is told the shape that reaches it."""

    def __init__(self, text):
        nn.ModuleList.__init__(self)
        words = [line.split() for line in text.splitlines() if line.strip()]
        assert words[0][0] == "input", "the first line must be: input CxHxW"
        shape = [int(v) for v in words[0][1].split("x")]
        self.text, self.shape = text, shape if len(shape) == 3 else shape + [1, 1]
        shape = tuple(self.shape)
        for kind, *options in words[1:]:
            layer = self.layer(kind, shape, dict(option.split("=") for option in options))
            shape = getattr(layer, "out_shape", shape)
            self.append(layer)

    @staticmethod
    def layer(kind, shape, options):
        if kind in ("coupling", "additive"):
            convolutional = options.get("net", "mlp") in NETS
            return (Coupling if convolutional else twin.Coupling)(shape, kind == "coupling",
                                                                  **options)
        return {"dequantize": lambda: twin.Dequantize(),
                "logit": lambda: twin.Logit(**options),
                "standardize": lambda: twin.Standardize(math.prod(shape)),
                "squeeze": lambda: Squeeze(shape, **options),
                "unsqueeze": lambda: Squeeze(shape, back=True, **options),
                "split": lambda: Split(shape), "actnorm": lambda: ActNorm(shape),
                "conv1x1": lambda: Conv1x1(shape, **options),
                "permute": lambda: Permute(shape, **options)}[kind]()

    def encode(self, x, noise=None):
        h, done, logdets = x.flatten(1).to(torch.get_default_dtype()), [], []
        if noise is not None:
            h = h + noise.flatten(1)
        for layer in self:
            if isinstance(layer, Split):
                h, out = h.chunk(2, 1)               # the first half of the channels goes on
                done, logdet = [out] + done, h.new_zeros(len(h))
            else:
                h, logdet = layer.encode(h)
            logdets.append(logdet)
        z = torch.cat([h] + done, 1)
        base = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        return z, torch.stack([base] + logdets, 1)

    def decode(self, z):
        size, splits = z.shape[1], sum(isinstance(layer, Split) for layer in self)
        front = size >> splits
        h = z[:, :front]
        for layer in reversed(self):
            if isinstance(layer, Split):
                h, front = torch.cat([h, z[:, front:2 * front]], 1), 2 * front
            else:
                h = layer.decode(h)
        return h

    def places(self):
        """For each element of z the flat input index of the place it was moved from."""
        h, done = torch.arange(math.prod(self.shape)), []
        for layer in self:
            if isinstance(layer, Squeeze):
                h = h[layer.source]
            elif isinstance(layer, Split):
                h, out = h.chunk(2)
                done = [out] + done
        return torch.cat([h] + done)

    def norms(self, mode):
        """Sets every batch norm's mode, and gives their list."""
        norms = [m for m in self.modules() if isinstance(m, Norm)]
        for norm in norms:
            norm.mode = mode
        return norms

    def recalibrate(self, batches):
        """Running statistics become the plain mean of the statistics of these (x, noise)."""
        for norm in self.norms("average"):
            norm.reset()
        with torch.no_grad():
            for x, noise in batches:
                self.encode(x, noise)
        self.norms("running")


def torch_modules(module):
    """Puts PyTorch's own modules in place of the twin's, with their weights."""
    for name, child in module.named_children():
        if isinstance(child, WNConv):
            o, i, k, _ = child.weight_v.shape
            conv = nn.Conv2d(i, o, k, padding=k // 2, bias=child.bias is not None)
            conv = parametrizations.weight_norm(conv)
            conv.parametrizations.weight.original0.data = child.weight_g.data
            conv.parametrizations.weight.original1.data = child.weight_v.data
            if child.bias is not None:
                conv.bias.data = child.bias.data
            setattr(module, name, conv)
        elif isinstance(child, Norm):
            norm = nn.BatchNorm2d(len(child.weight))
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            torch_modules(child)


# --- presets ------------------------------------------------------------------------------------

HEAD = "input {}\ndequantize\nlogit alpha=0.05\n"


def realnvp(channels, blocks, shape="1x28x28", scales=None, order="plain"):
    """Scales of 3 checkerboard couplings, squeeze, 3 channel couplings, split; 4 at the end."""
    scales = scales or (2 if shape.endswith("28x28") else 3)
    lines = []

    def couple(kind, phases, width):
        lines.extend(f"coupling mask={kind}:{p} net=resnet channels={width} blocks={blocks}"
                     for p in phases)

    for scale in range(scales - 1):
        couple("checkerboard", (1, 0, 1), channels << scale)
        lines.append("squeeze")
        couple("channel", (1, 0, 1), channels << (scale + 1))
        if order == "alt":
            lines.extend(["unsqueeze", "squeeze order=alt"])
        lines.append("split")
    couple("checkerboard", (1, 0, 1, 0), channels << (scales - 1))
    return HEAD.format(shape) + "\n".join(lines) + "\n"


def spatial(kind, phases, count, net, shape="1x28x28"):
    lines = [f"coupling mask={kind}:{i % phases} {net}" for i in range(count)]
    return HEAD.format(shape) + "\n".join(lines) + "\n"


def glow(channels, steps, shape="1x28x28", scales=2, net="highway"):
    step = f"actnorm\nconv1x1\ncoupling mask=channel:1 net={net} channels={channels}\n"
    return HEAD.format(shape) + "split\n".join(["squeeze\n" + step * steps] * scales)


PRESETS = {"realnvp-paper": (realnvp(64, 6), 14707336),
           "realnvp-small": (realnvp(32, 2), 1271048),
           "realnvp-tiny": (realnvp(16, 2), None),
           "cycle-resnet-neck": (spatial("cycle", 4, 8, "net=resnet channels=16 blocks=2 neck=10"),
                                 None),
           "glow-small": (glow(48, 6), None),
           "glow-paper": (glow("200 act=none", 16), 69378048)}


# --- weights --------------------------------------------------------------------------------------

def value_for(name, p, random):
    normal = torch.randn(p.shape, generator=random, dtype=torch.float64)
    positive = 0.5 + torch.rand(p.shape, generator=random, dtype=torch.float64)
    last = name.split(".")[-1]
    if "out_conv" in name or "conv3" in name or "up.3" in name:      # s and t within reason
        normal, positive = 0.3 * normal, 0.3 * positive
    if last in ("scale", "std", "weight_g", "running_var") or "norm" in name and last == "weight":
        return positive
    if last == "sign":
        return normal.sign()
    if last == "order":
        return torch.randperm(len(p), generator=random)
    if last == "num_batches_tracked":
        return torch.tensor(3)
    if last == "weight_v":
        return normal
    if last in ("lower", "upper"):               # the unused triangles too: nobody may look there
        return 0.3 * normal
    if last == "weight" and name.count(".") == 1:                            # of a conv1x1
        return torch.linalg.qr(normal)[0] + 0.2 * positive
    if last == "weight":
        return normal / math.sqrt(math.prod(p.shape[1:]))
    return 0.2 * normal


def randomize(module, seed):
    """Weights a trained module might have: nothing zero, nothing equal, all exact in float32."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.state_dict().items():
            if name.endswith("measured"):
                p.fill_(1)
            else:
                p.copy_(value_for(name, p, random).float())
    return module


# --- checks ---------------------------------------------------------------------------------------

def check_flow(text, seed):
    """The way back, and the logdet against the whole Jacobian matrix."""
    flow = randomize(Flow(text), seed)
    x = torch.rand(2, math.prod(flow.shape), generator=torch.Generator().manual_seed(seed))
    z, terms = flow.encode(x)
    assert torch.allclose(flow.decode(z), x, atol=1e-8), text
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v[None])[0][0], x[1])
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], terms[1, 1:].sum(), atol=1e-8), text
    assert sorted(flow.places().tolist()) == list(range(z.shape[1]))


def check_norm():
    """Norm and WNConv against PyTorch's own."""
    x = torch.randn(3, 4, 5, 6)
    own, theirs = randomize(Norm(4), 3), nn.BatchNorm2d(4)
    theirs.load_state_dict(own.state_dict())
    for own.mode, training in (("running", False), ("train", True), ("train", True)):
        theirs.train(training)
        assert torch.allclose(own(x), theirs(x), atol=1e-12)
        for a, b in zip(own.state_dict().values(), theirs.state_dict().values()):
            assert torch.allclose(a, b, atol=1e-12)
    own = WNConv(4, 5, 3)
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3, padding=1))
    theirs.bias, (g, v) = own.bias, (own.weight_g, own.weight_v)
    theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1 = g, v
    assert torch.allclose(own(x), theirs(x), atol=1e-12)


def check():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    check_norm()
    resnet = "net=resnet channels=3 blocks=2"
    for i, lines in enumerate((
            ["squeeze", "split", "actnorm", "conv1x1 lu=1", "squeeze", "split",
             "permute seed=3", "conv1x1", "permute reverse=1"],
            [f"coupling mask=checkerboard:0 {resnet}", "squeeze order=alt",
             f"coupling mask=channel:1 {resnet}", "unsqueeze order=alt",
             f"coupling mask=cycle:3 {resnet} neck=3"],
            ["coupling mask=horizontal:0 net=autoencoder channels=2 neck=3", "squeeze",
             f"coupling mask=checkerboard:1 {resnet} norm=0",
             "coupling mask=channel:0 net=highway channels=3 act=none", "split",
             "additive mask=vertical:1 net=glow channels=3", "coupling mask=cycle:2 hidden=5"])):
        for shape in ("1x4x8", "3x8x4"):
            check_flow("\n".join([f"input {shape}", "logit alpha=0.05"] + lines), i + 1)
    for name, (text, count) in PRESETS.items():
        got = sum(p.numel() for p in Flow(text).parameters())
        assert count in (None, got), (name, got)
        print(f"twin_image: {name} has {got} parameters")
    print("twin_image: all checks passed")


if __name__ == "__main__":
    check()
