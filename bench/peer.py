"""The peer: flowood's everyday model in the newest PyTorch, as fast as a good user would write it.

    python peer.py [--threads N] [--compile] [--mlp] [--batch N] [--seconds S]
        lines "bench NAME METRIC VALUE UNIT", each the median of seven repeats after a warm-up
    python peer.py --train mlp-cycle --epochs 4 [--lr X] [--cosine] [--ema D] [--clip N] [--seed N]
        trains on FashionMNIST; after each epoch test bits per dimension and the AUROC of
        -log_prob, MNIST being the positive class: the numbers that the C library should reach

What makes it fast (mlp-cycle): images stay uint8 and are reordered once, so that each mask region
is a run of columns; the flow carries the regions as separate tensors, so that couplings neither
gather nor scatter; dequantize and logit run on a batch at a time without a graph; fused Adam. The image
models are the golden twins with PyTorch's own convolutions, weight norms and batch norms: their
time goes into those, but masks and padding around them are as plain as in the twins.
"""

import argparse
import copy
import gzip
import math
import pathlib
import resource
import statistics
import sys
import time

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
PRESETS = {"mlp-cycle": ("cycle", 10), "mlp-cycle-2": ("cycle", 2),      # regions, bottleneck
           "mlp-checker": ("checkerboard", 10), "mlp-horizontal": ("horizontal", 10)}
SIDE, ALPHA, COUPLINGS, HIDDEN = 28, 0.05, 8, 512


def regions(kind):
    """The pixels (flat indices) of each region of a mask kind."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    top, left = y < SIDE // 2, x < SIDE // 2
    masks = {"cycle": [top & left, top & ~left, ~top & ~left, ~top & left],
             "checkerboard": [(x + y) % 2 == 0, (x + y) % 2 == 1],
             "horizontal": [top, ~top]}[kind]
    return [mask.flatten().nonzero()[:, 0] for mask in masks]


class Coupling(nn.Module):
    def __init__(self, n_in, n_out, bottleneck):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_in, HIDDEN), nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(HIDDEN, bottleneck),
            nn.Linear(bottleneck, HIDDEN), nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(HIDDEN, 2 * n_out))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_id, x_change):
        raw_s, t = self.net(x_id).chunk(2, 1)
        s = self.scale * torch.tanh(raw_s)
        return (x_change + t) * s.exp(), s.sum(1)


class Flow(nn.Module):
    """Coupling i conditions on region i and changes region i + 1 (modulo their number)."""

    def __init__(self, preset):
        super().__init__()
        kind, bottleneck = PRESETS[preset]
        pixels = regions(kind)
        self.order, self.sizes = torch.cat(pixels), [len(p) for p in pixels]
        n = len(pixels)
        self.couplings = nn.ModuleList(
            Coupling(self.sizes[i % n], self.sizes[(i + 1) % n], bottleneck)
            for i in range(COUPLINGS))

    @staticmethod
    @torch.no_grad()
    def preprocess(x):
        """uint8 -> logits and the log of their slopes; the unit interval is [alpha, 1 - alpha]."""
        slope = (1 - 2 * ALPHA) / 256
        v = x.float().add_(torch.rand(x.shape)).mul_(slope).add_(ALPHA)
        log_v, log_rest = v.log(), (1 - v).log()      # log1p gains nothing here, costs more
        return log_v - log_rest, x.shape[1] * math.log(slope) - (log_v + log_rest).sum(1)

    def forward(self, x):
        """log p of 8-bit images whose pixels are in self.order."""
        h, log_prob = self.preprocess(x)
        parts, n = list(h.split(self.sizes, 1)), len(self.sizes)
        for i, coupling in enumerate(self.couplings):
            j = (i + 1) % n
            parts[j], logdet = coupling(parts[i % n], parts[j])
            log_prob = log_prob + logdet
        base = sum((part * part).sum(1) for part in parts)
        return log_prob - 0.5 * base - 0.5 * h.shape[1] * math.log(2 * math.pi)


def images(folder, name):
    """An IDX file of 28 x 28 images as uint8 [N, 784]."""
    raw = gzip.decompress((folder / name).read_bytes())
    return torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, SIDE * SIDE)


def adam(flow, lr):
    return torch.optim.Adam(flow.parameters(), lr=lr, fused=True)


def train_step(model, optimizer, x):
    optimizer.zero_grad(set_to_none=True)
    loss = -model(x).mean()
    loss.backward()
    optimizer.step()
    return loss


# --- benchmarks ---------------------------------------------------------------------------------

IMAGE_PRESETS = ("realnvp-tiny", "realnvp-small", "glow-small", "cycle-resnet-neck")


def bench_image(preset, data, options):
    """Training of an image model: the golden twin with PyTorch's own convolutions and norms."""
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import twin_image
    flow = twin_image.Flow(twin_image.PRESETS[preset][0])
    twin_image.torch_modules(flow)
    flow.train()
    log_prob = torch.compile(flow.log_prob, dynamic=False) if options.compile else flow.log_prob
    optimizer = adam(flow, 5e-4)

    def train():
        x = data[torch.randint(len(data), (32,))]
        train_step(lambda x: log_prob(x, torch.rand(x.shape)), optimizer, x)

    line(f"{preset}-train", "images_per_s", 32 * calls_per_second(train, options.seconds), "1/s")
    line(f"{preset}-train", "peak_memory", peak_mb(), "MB")


def calls_per_second(work, seconds):
    """Median over seven repeats; the warm-up takes as long as one of them, and five calls."""
    rates = []
    for repeat in range(8):
        calls, start = 0, time.perf_counter()
        while calls < 5 or time.perf_counter() - start < seconds / 8:
            work()
            calls += 1
        rates.append(calls / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def line(name, metric, value, unit):
    print(f"bench {name} {metric} {value:.4g} {unit}", flush=True)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench(options):
    line("import-torch", "peak_memory", peak_mb(), "MB")
    flow = Flow("mlp-cycle")
    data = images(options.data / "fashion", "train-images-idx3-ubyte.gz")[:, flow.order]
    line("load-data", "peak_memory", peak_mb(), "MB")
    model = torch.compile(flow, fullgraph=True, dynamic=False) if options.compile else flow
    optimizer = adam(flow, 1e-3)

    def train():
        train_step(model, optimizer, data[torch.randint(len(data), (options.batch,))])

    @torch.inference_mode()
    def score():
        for x in data[:1024].split(options.batch):
            model(x)

    line("mlp-cycle-train", "images_per_s",
         options.batch * calls_per_second(train, options.seconds), "1/s")
    line("mlp-cycle-train", "peak_memory", peak_mb(), "MB")
    line("mlp-cycle-score", "images_per_s", 1024 * calls_per_second(score, options.seconds), "1/s")
    line("mlp-cycle-score", "peak_memory", peak_mb(), "MB")

    @torch.inference_mode()
    def one():
        model(data[:1])

    line("mlp-cycle-one", "images_per_s", calls_per_second(one, options.seconds / 2), "1/s")
    if options.mlp:
        return
    for preset in () if options.compile else IMAGE_PRESETS:  # compiling each takes ten minutes
        bench_image(preset, images(options.data / "fashion", "train-images-idx3-ubyte.gz"), options)

    for m, k, n in ((128, 196, 512), (128, 512, 10), (128, 10, 512), (128, 512, 392),
                    (512, 512, 512)):
        x, w, y = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
        rate = calls_per_second(lambda: torch.mm(x, w.t(), out=y), options.seconds / 5)
        line(f"matmul-{m}x{k}x{n}", "speed", 2e-9 * m * k * n * rate, "GFLOP/s")
    x = torch.rand(100_000) + 0.1
    y = torch.empty_like(x)
    arrays = {"exp": torch.exp, "log": torch.log, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
              "softplus": torch.ops.aten.softplus.out}
    for name, fn in arrays.items():
        rate = calls_per_second(lambda: fn(x, out=y), options.seconds / 5)
        line(f"array-{name}", "speed", 1e-6 * len(x) * rate, "Melem/s")


# --- a training run ---------------------------------------------------------------------------

@torch.inference_mode()
def log_probs(flow, data):
    return torch.cat([flow(x) for x in data.split(500)]).double()


def auroc(inside, ood):
    """P(an OOD score is the higher one) + P(equal)/2."""
    inside = inside.sort().values
    below = torch.searchsorted(inside, ood) + torch.searchsorted(inside, ood, right=True)
    return (below.double().mean() / (2 * len(inside))).item()


def train(options):
    flow = Flow(options.train)
    train_set, test_set, ood_set = (
        images(options.data / folder, name + "-images-idx3-ubyte.gz")[:, flow.order]
        for folder, name in (("fashion", "train"), ("fashion", "t10k"), ("mnist", "t10k")))
    model = torch.compile(flow, fullgraph=True, dynamic=False) if options.compile else flow
    average = copy.deepcopy(flow)
    optimizer = adam(flow, options.lr)
    steps = len(train_set) // options.batch
    total, step, busy = steps * options.epochs, 0, 0.0
    for epoch in range(options.epochs):
        start, loss_sum = time.perf_counter(), 0.0
        for batch in torch.randperm(len(train_set))[:steps * options.batch].split(options.batch):
            if options.cosine:
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad(set_to_none=True)
            loss = -model(train_set[batch]).mean()
            loss.backward()
            if options.clip:
                nn.utils.clip_grad_norm_(flow.parameters(), options.clip)
            optimizer.step()
            loss_sum += loss.item()
            step += 1
            if options.ema:                # a short memory first, or the start would weigh on it
                memory = min(options.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(flow.parameters()),
                                         1 - memory)
        busy += time.perf_counter() - start
        nats = SIDE * SIDE * math.log(2)
        for name, judge in (("", flow), (" (averaged)", average))[:2 if options.ema else 1]:
            test, ood = log_probs(judge, test_set), log_probs(judge, ood_set)
            print(f"{options.train} epoch {epoch + 1}{name}:"
                  f"  train bpd {loss_sum / steps / nats:.3f}  test bpd {-test.mean() / nats:.3f}"
                  f"  mnist bpd {-ood.mean() / nats:.3f}  auroc {auroc(-test, -ood):.4f}"
                  f"  {busy:.0f} s", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = arguments.add_argument
    add("--data", type=pathlib.Path, default=HERE.parent.parent / "shared" / "data",
        help="folder with fashion/ and mnist/")
    add("--threads", type=int, default=2)
    add("--compile", action="store_true", help="torch.compile instead of eager, of the MLP only")
    add("--mlp", action="store_true", help="the rows of mlp-cycle alone")
    add("--batch", type=int, default=128)
    add("--seconds", type=float, default=8, help="time for each of the larger benchmarks")
    add("--seed", type=int, default=1)
    add("--train", choices=PRESETS, help="a training run instead of the benchmarks")
    add("--epochs", type=int, default=4)
    add("--lr", type=float, default=1e-3)
    add("--cosine", action="store_true", help="lower the rate to zero along half a cosine")
    add("--ema", type=float, default=0, help="also judge averaged weights, for example 0.999")
    add("--clip", type=float, default=0, help="limit the norm of the whole gradient")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    (train if options.train else bench)(options)


if __name__ == "__main__":
    main()
