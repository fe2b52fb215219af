"""Checkpoints as the paper's own code (flows_ood) writes them, from a twin of its modules.

    python make_flows_ood.py        flows_ood_NAME.pt (a state_dict) and flows_ood_NAME.safetensors,
                                    what examples/from_flows_ood.py makes of it;
                                    flows_ood.safetensors has x and log_prob of every NAME

The modules below have the names, the shapes and the mathematics of that code and none of its lines:
they were written from a list of facts about it. Weights are exact in float32, everything is
computed in float64. log_prob is what that code reports, with u = 1/2 as dequantization noise: data
in [0,1] scaled by 255/256, and log 256 taken off for every dimension.
"""

import math
import subprocess
import sys
import warnings

import torch
from torch import nn

import twin_image
from make import HERE, save

warnings.filterwarnings("ignore")
torch.set_default_dtype(torch.float64)


# --- st-networks ----------------------------------------------------------------------------------

class Named(nn.Module):
    """A convolution that is called conv inside of a module of its own."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


def wn(inputs, outputs, kernel, bias=True):
    return Named(twin_image.WNConv(inputs, outputs, kernel, bias))


def plain(inputs, outputs, kernel):
    return Named(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


class ResidualBlock(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.in_norm, self.in_conv = norm(channels), wn(channels, channels, 3, bias=False)
        self.out_norm, self.out_conv = norm(channels), wn(channels, channels, 3)

    def forward(self, h):
        inner = self.in_conv(torch.relu(self.in_norm(h)))
        return h + self.out_conv(torch.relu(self.out_norm(inner)))


class ResNet(nn.Module):
    def __init__(self, shape, outputs, double, channels, blocks, skip=True, bottleneck=0,
                 norm=True):
        super().__init__()
        inputs, height, width = shape
        norm = nn.BatchNorm2d if norm else lambda _: nn.Identity()
        self.factor = 2 if double and norm is nn.BatchNorm2d else 1
        self.in_norm, self.in_conv = norm(inputs), wn(2 * inputs, channels, 3)
        if skip and not bottleneck:
            self.in_skip = wn(channels, channels, 1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, norm) for _ in range(blocks))
        if skip and not bottleneck:
            self.skips = nn.ModuleList(wn(channels, channels, 1) for _ in range(blocks))
        if bottleneck:
            size = channels * height * width
            self.bottleneck = nn.Sequential(nn.Linear(size, bottleneck),
                                            nn.Linear(bottleneck, size))
        self.out_norm, self.out_conv = norm(channels), wn(channels, outputs, 1)

    def forward(self, x):
        h = self.factor * self.in_norm(x)
        h = self.in_conv(torch.relu(torch.cat([h, -h], 1)))
        out = self.in_skip(h) if hasattr(self, "in_skip") else None
        for j, block in enumerate(self.blocks):
            h = block(h)
            if out is not None:
                out = out + self.skips[j](h)
            if hasattr(self, "bottleneck") and j == len(self.blocks) // 2 - 1:
                h = self.bottleneck(h.flatten(1)).view(h.shape)
        return self.out_conv(torch.relu(self.out_norm(h if out is None else out)))


class HighwayLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate, self.transform = plain(channels, channels, 3), plain(channels, channels, 3)

    def forward(self, h):
        gate = torch.sigmoid(self.gate(h))
        return gate * self.transform(h) + (1 - gate) * h


def highway(shape, outputs, double, channels, layers):
    net = nn.Sequential()
    net.add_module("in_conv", plain(shape[0], channels, 3))
    net.add_module("layers", nn.Sequential(*[HighwayLayer(channels) for _ in range(layers)]))
    net.add_module("out_conv", plain(channels, outputs, 1))
    return net


def glow_convnet(shape, outputs, double, channels):
    return nn.Sequential(plain(shape[0], channels, 3), nn.ReLU(), plain(channels, channels, 1),
                         nn.ReLU(), plain(channels, outputs, 3))


def linear(size, hidden, layers):
    widths = [size] + [hidden] * layers
    parts = [[nn.Linear(a, b), nn.ReLU()] for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*sum(parts, []), nn.Linear(hidden, 2 * size))


# --- layers: x -> (y, logdet of each sample) ------------------------------------------------------

class Rescale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(shape))
        self.weight_v = nn.Parameter(torch.ones(shape))

    def forward(self, s):
        return self.weight_g * self.weight_v.sign() * s


def side(kind, shape, reverse):
    """1 where a coupling looks: the other half, or the next quadrant, is what it changes."""
    c, h, w = shape
    channel, y, x = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    if kind == "quadrant":                               # clockwise from top left
        order = torch.where(y < h // 2, (x >= w // 2).long(), 3 - (x >= w // 2).long())
        return order == reverse, order == (reverse + 1) % 4
    sees = {"checkerboard": (x + y) % 2 == 1, "channel": channel >= c // 2,
            "horizontal": y < h // 2, "halves": channel < c // 2}[kind]
    sees = ~sees if reverse else sees
    return sees, ~sees


class Coupling(nn.Module):
    def __init__(self, kind, reverse, shape, net, **options):
        super().__init__()
        sees, changes = side(kind, shape, reverse)
        self.sees, self.changes, self.kind, self.shape = sees, changes, kind, shape
        c = shape[0]
        if kind == "halves":
            self.st_net = net(c, **options)
            self.rescale = Rescale(c)
            return
        if kind == "channel":
            c = c // 2
        self.st_net = net((c, *shape[1:]), 2 * c, kind == "checkerboard", **options)
        self.rescale = Rescale(c, 1, 1)

    def forward(self, x):
        if self.kind == "channel":
            inside = x[:, self.sees[:, 0, 0]]
        else:
            inside = x * self.sees
        if self.kind == "halves":
            s, t = self.st_net(inside.flatten(1)).chunk(2, 1)
            s, t = (self.rescale(torch.tanh(s))[..., None, None], t[..., None, None])
        else:
            s, t = self.st_net(inside).chunk(2, 1)
            s = self.rescale(torch.tanh(s))
        if self.kind == "channel":
            whole = x.new_zeros(2, *x.shape)
            whole[0][:, self.changes[:, 0, 0]], whole[1][:, self.changes[:, 0, 0]] = s, t
            s, t = whole
        s, t = s * self.changes, t * self.changes
        return (x + t) * s.exp(), s.flatten(1).sum(1)


class ActNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        logdet = self.logs.sum() * x[0, 0].numel()
        return (x + self.bias) * self.logs.exp(), logdet.expand(len(x))


class InvertibleConv1x1(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels))

    def forward(self, x):
        logdet = torch.linalg.slogdet(self.weight)[1] * x[0, 0].numel()
        return torch.einsum("oi,biyx->boyx", self.weight, x), logdet.expand(len(x))


class Squeeze(nn.Module):
    def forward(self, x):
        return nn.functional.pixel_unshuffle(x, 2), x.new_zeros(len(x))


class FactorOut(nn.Module):
    """The second half of the channels is latent."""


class Model(nn.Module):
    def __init__(self, layers, image=True):
        super().__init__()
        self.body, self.image = nn.Sequential(*layers), image

    def log_prob(self, x):
        size, logdet, latent, h = x[0].numel(), 0, [], x.double()
        if self.image:
            y = (h / 255) * (255 / 256) + 0.5 / 256        # u = 1/2
            v = 0.5 + 0.9 * (y - 0.5)
            h = torch.log(v / (1 - v))
            logdet = (math.log(0.9) - torch.log(v * (1 - v))).flatten(1).sum(1)
            logdet = logdet + size * (math.log(255 / 256) - math.log(256))
        layers = [m for m in self.body.modules()
                  if isinstance(m, (Coupling, ActNorm2d, InvertibleConv1x1, Squeeze, FactorOut))]
        for layer in layers:
            if isinstance(layer, FactorOut):
                h, out = h.chunk(2, 1)
                latent.append(out.flatten(1))
            else:
                h, more = layer(h)
                logdet = logdet + more
        z = torch.cat(latent + [h.flatten(1)], 1)
        return logdet - 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)


# --- models ---------------------------------------------------------------------------------------

def three(kind, shape, **options):
    return nn.Sequential(*[Coupling(kind, r, shape, **options) for r in (0, 1, 0)])


def realnvp(shape, scales, channels, **options):
    layers = []
    for _ in range(scales - 1):
        layers.append(three("checkerboard", shape, channels=channels, **options))
        shape, channels = (4 * shape[0], shape[1] // 2, shape[2] // 2), 2 * channels
        layers += [Squeeze(), three("channel", shape, channels=channels, **options), FactorOut()]
        shape = (shape[0] // 2, *shape[1:])
    layers += [Coupling("checkerboard", r, shape, channels=channels, **options)
               for r in (0, 1, 0, 1)]
    return Model(layers)


def glow(shape, scales, steps, **options):
    layers = []
    for scale in range(scales):
        shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        layers.append(Squeeze())
        for _ in range(steps):
            layers.append(nn.Sequential(ActNorm2d(shape[0]), InvertibleConv1x1(shape[0]),
                                        Coupling("channel", 0, shape, **options)))
        if scale + 1 < scales:
            layers.append(FactorOut())
            shape = (shape[0] // 2, *shape[1:])
    return Model(layers)


def one_scale(kind, sides, shape, count=0, **options):
    return Model([Coupling(kind, i % sides, shape, **options) for i in range(count or sides)],
                 kind != "halves")


MODELS = {       # what the script is told, and the model
    "realnvp": ("--model realnvp --shape 1x8x8",
                lambda: realnvp((1, 8, 8), 2, 2, net=ResNet, blocks=1)),
    "colour": ("--model realnvp --shape 3x4x4",
               lambda: realnvp((3, 4, 4), 1, 2, net=ResNet, blocks=2, skip=False)),
    "plain": ("--model realnvp --shape 1x4x4",          # without batch norm
              lambda: realnvp((1, 4, 4), 1, 3, net=ResNet, blocks=2, norm=False)),
    "cycle": ("--model cycle --shape 1x8x8",
              lambda: one_scale("quadrant", 4, (1, 8, 8), net=ResNet, channels=2, blocks=2,
                                bottleneck=3)),
    "unused": ("--model cycle --shape 1x4x4",           # a bottleneck that is never applied
               lambda: one_scale("quadrant", 4, (1, 4, 4), net=ResNet, channels=2, blocks=1,
                                 bottleneck=3)),
    "horizontal": ("--model horizontal --shape 1x6x4",
                   lambda: one_scale("horizontal", 2, (1, 6, 4), net=ResNet, channels=3, blocks=3,
                                     bottleneck=2)),
    "highway": ("--model glow --shape 1x8x8",
                lambda: glow((1, 8, 8), 2, 2, net=highway, channels=4, layers=3)),
    "glow": ("--model glow --shape 3x4x4",
             lambda: glow((3, 4, 4), 1, 2, net=glow_convnet, channels=5)),
    "tabular": ("--model tabular",
                lambda: one_scale("halves", 2, (7, 1, 1), 4, net=linear, hidden=6, layers=2)),
}


def randomize(model, seed):
    """Weights as of a trained model, exact in float32."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.state_dict().items():
            normal = torch.randn(p.shape, generator=random)
            last, inputs = name.rsplit(".", 1)[-1], max(1, math.prod(p.shape[1:]))
            if last in ("weight_g", "running_var") or "norm.weight" in name:
                value = 0.4 + 0.4 * torch.rand(p.shape, generator=random)
            elif last == "num_batches_tracked":
                value = torch.tensor(3)
            elif name.count("st_net") == 0 and p.dim() == 2:         # an invertible matrix
                value = torch.linalg.qr(normal)[0] + 0.1 * normal
            elif last == "weight_v":
                value = normal
            else:
                value = 0.7 * normal / math.sqrt(inputs) if last == "weight" else 0.2 * normal
            p.copy_(value.float())
    return model.eval()


def main():
    tensors, notes = {}, {}
    for seed, (name, (options, build)) in enumerate(MODELS.items(), 41):
        model = randomize(build(), seed)
        random = torch.Generator().manual_seed(seed)
        shape = model.body[0].shape if name == "tabular" else \
            [int(n) for n in options.split()[-1].split("x")]
        x = torch.randint(0, 256, (4, *shape), generator=random, dtype=torch.uint8)
        if not model.image:
            x = torch.randn(4, *shape, generator=random).float().double()
        state, out = HERE / f"flows_ood_{name}.pt", HERE / f"flows_ood_{name}.safetensors"
        torch.save({n: t.float() if t.is_floating_point() else t
                    for n, t in model.state_dict().items()}, state,
                   _use_new_zipfile_serialization=name == "highway")
        subprocess.run([sys.executable, HERE / "../../examples/from_flows_ood.py", state, out,
                        *options.split()], check=True)
        with torch.no_grad():
            tensors.update({f"{name}.x": x, f"{name}.log_prob": model.log_prob(x)})
        assert torch.isfinite(tensors[f"{name}.log_prob"]).all(), name
        notes[name] = options
    save(HERE / "flows_ood.safetensors", tensors, notes)


if __name__ == "__main__":
    main()
