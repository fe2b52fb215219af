"""Writes the golden fixtures that the C tests read, all from twin.py and PyTorch's autograd.

    python make.py                     ops, flow_* and train .safetensors beside this file
    python make.py --full FILE         the full-size mlp-cycle (about 40 MB): not to be committed

Everything is computed and stored in float64; inputs and weights are first rounded to float32, so
that a float32 library starts from exactly the same numbers. The fixtures' layout is in their
metadata and in the comments of the three functions below.
"""

import argparse
import math
import pathlib

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import twin

HERE = pathlib.Path(__file__).parent
torch.set_default_dtype(torch.float64)
random = torch.Generator().manual_seed(20200615)


def rand(*shape):
    """N(0, 1), exact in float32."""
    return torch.randn(shape, generator=random).float().double()


def save(path, tensors, notes):
    """Leaves a file that says the same alone: the package writes metadata in no fixed order."""
    tensors = {name: torch.as_tensor(t).detach().contiguous().clone()
               for name, t in tensors.items()}
    state = "written"
    if path.exists():
        with safe_open(path, "pt") as old:
            if (old.metadata() == notes and set(old.keys()) == set(tensors)
                    and all(torch.equal(old.get_tensor(k), t) for k, t in tensors.items())):
                state = "unchanged"
    if state == "written":
        save_file(tensors, path, notes)
        path.chmod(0o644)
    print(f"{path}: {len(tensors)} arrays, {path.stat().st_size} bytes, {state}")


def make_ops(path):
    """CASE.in0, CASE.in1 ...; CASE.out; CASE.dout, a random upstream gradient; CASE.grad0 ...

    The metadata says what CASE computes; index lists are I64. random.N.* are known answers of the
    random numbers: random.N.key = [seed, stream, first], bits (of block `first`), and the stream's
    first uniform and normal numbers.
    """
    tensors, notes = {}, {}

    def case(name, what, fn, *inputs, **extra):
        inputs = [t.clone().requires_grad_() for t in inputs]
        out = fn(*inputs)
        dout = rand(*out.shape)
        grads = torch.autograd.grad(out, inputs, dout)
        notes[name] = what
        tensors.update({f"{name}.out": out, f"{name}.dout": dout})
        tensors.update({f"{name}.in{i}": t for i, t in enumerate(inputs)})
        tensors.update({f"{name}.grad{i}": t for i, t in enumerate(grads)})
        tensors.update({f"{name}.{key}": t for key, t in extra.items()})

    for name, fn in ("add", torch.add), ("sub", torch.sub), ("mul", torch.mul):
        for suffix, a, b in (("", (3, 4, 5), (3, 4, 5)), ("_rows", (3, 4, 5), (4, 5)),
                             ("_vector", (3, 4), (4,)), ("_scalar", (3, 4), (1,))):
            case(name + suffix, name, fn, rand(*a), rand(*b))
    case("square", "mul(in0, in0)", lambda a: a * a, rand(3, 5))
    case("scale", "scale k=-1.7", lambda a: -1.7 * a, rand(3, 7))

    # 37 elements leave a rest for any vector width; the wide inputs reach where exp would overflow
    # if it were used carelessly, and far into the flat ends.
    wide = torch.cat([rand(21), torch.tensor([-100, -87, -40, -21, -20, -19, -8, -1e-3, 1e-3, 8,
                                              19, 20, 21, 40, 87, 100]).float().double()])
    leaky_relu = twin.ACTIVATIONS["leaky_relu"]
    softplus = lambda a: torch.logaddexp(a, torch.zeros(()))
    for name, fn in (("exp", torch.exp), ("tanh", torch.tanh), ("sigmoid", torch.sigmoid),
                     ("softplus", softplus), ("relu", torch.relu), ("leaky_relu", leaky_relu)):
        case(name, "leaky_relu slope=0.01" if name == "leaky_relu" else name, fn,
             wide.clamp(-30, 30) if name == "exp" else wide)
    case("log", "log", torch.log, (2 * rand(37)).exp().float().double())

    case("sum_all", "sum keep=0: everything -> [1]", lambda a: a.sum().reshape(1), rand(3, 4, 5))
    case("mean_all", "mean keep=0: everything -> [1]", lambda a: a.mean().reshape(1),
         rand(3, 4, 5))
    case("sum_keep", "sum keep=1: [B,...] -> [B]", lambda a: a.sum((1, 2)), rand(3, 4, 5))
    case("mean_keep", "mean keep=1: [B,...] -> [B]", lambda a: a.mean((1, 2)), rand(3, 4, 5))

    case("linear", "linear: in0 x[5,7], in1 w[3,7], in2 b[3] -> x w^T + b",
         torch.nn.functional.linear, rand(5, 7), rand(3, 7), rand(3))
    case("linear_wide", "linear: sizes that are no multiple of any tile",
         torch.nn.functional.linear, rand(13, 37), rand(21, 37), rand(21))
    case("matmul", "matmul: in0 [4,6] in1 [6,3]", torch.matmul, rand(4, 6), rand(6, 3))

    def gather(a, index):
        padded = torch.cat([a, torch.zeros(len(a), 1)], 1)    # -1 is the last column: zero
        return padded[:, index]

    index = torch.tensor([4, -1, 0, 0, 5])
    case("gather", "gather: out[b,j] = in0[b,index[j]], index -1 gives zero",
         lambda a: gather(a, index), rand(3, 6), index=index)
    to = torch.tensor([5, 1, 0, 3])
    case("scatter", "scatter: out[b,index[j]] = in0[b,j], the rest of width 6 is zero",
         lambda a: torch.zeros(3, 6).index_copy(1, to, a), rand(3, 4), index=to)
    case("concat", "concat along axis 1", lambda a, b: torch.cat([a, b], 1),
         rand(3, 2), rand(3, 5))
    case("concat_image", "concat along axis 1", lambda a, b: torch.cat([a, b], 1),
         rand(2, 1, 3, 4), rand(2, 2, 3, 4))
    case("slice", "slice along axis 1: begin=2 count=3", lambda a: a[:, 2:5], rand(3, 7))
    case("slice_image", "slice along axis 1: begin=1 count=2", lambda a: a[:, 1:3],
         rand(2, 4, 3, 2))
    case("reshape", "reshape [3,4,5] -> [3,20]", lambda a: a.reshape(3, 20), rand(3, 4, 5))

    keys = ((0, 0, 0), (42, 7, 3), (2**40 + 5, 2**60 + 3 * 2**40 + 59999, 2**33))
    for i, (seed, stream, first) in enumerate(keys):
        bits = twin.philox(seed, stream, first).astype(np.int64)
        tensors.update({f"random.{i}.key": torch.tensor([seed, stream, first]),
                        f"random.{i}.bits": bits,
                        f"random.{i}.uniform": twin.uniform(seed, stream, 11),
                        f"random.{i}.normal": twin.normal(seed, stream, 11)})
    save(path, tensors, notes)


FLOWS = {
    "masks": ("input 1x4x6\ndequantize\nlogit alpha=0.05\n", 3,
              [f"coupling mask={m} net=mlp hidden=8 depth=1 bottleneck=3" for m in
               ("checkerboard:0 checkerboard:1 horizontal:0 horizontal:1 vertical:0 vertical:1 "
                "cycle:0 cycle:1 cycle:2 cycle:3").split()]),
    "odd": ("input 1x5x3\ndequantize\nlogit alpha=0.05\n", 3,      # halves round down
            [f"coupling mask={m} net=mlp hidden=6 depth=1" for m in
             "cycle:0 cycle:1 cycle:2 cycle:3 horizontal:0 vertical:1 checkerboard:1 halves:0 "
             "alternating:1".split()]),
    "channels": ("input 3x4x4\ndequantize\nlogit alpha=0.01\n", 2,
                 ["coupling mask=channel:0 net=mlp hidden=9 depth=1 bottleneck=4",
                  "additive mask=checkerboard:0 net=mlp hidden=9 depth=1 bottleneck=4",
                  "coupling mask=channel:1 net=mlp hidden=9 depth=1 act=relu",
                  "coupling mask=checkerboard:1 net=mlp hidden=9 depth=1 bottleneck=4 act=tanh"]),
    "vector": ("input 5\nstandardize\n", 4,
               ["coupling mask=halves:0 net=mlp hidden=16 depth=1 act=relu",
                "coupling mask=halves:1 net=mlp hidden=16 depth=2 act=tanh",
                "coupling mask=alternating:0 net=mlp hidden=16 depth=3 bottleneck=2",
                "coupling mask=alternating:1 net=mlp hidden=16 depth=2 bottleneck=1",
                "coupling mask=random:0 net=mlp hidden=16 act=softplus",
                "coupling mask=random:1 net=mlp hidden=16",
                "additive mask=random:6 net=mlp hidden=16 act=softplus"]),
    "additive": ("input 6\n", 4,
                 ["additive mask=halves:0 net=mlp hidden=10 depth=1 act=tanh",
                  "additive mask=halves:1 net=mlp hidden=10 depth=1 act=tanh",
                  "coupling mask=alternating:0 net=mlp hidden=10 depth=1 act=tanh"]),
}


def make_flow(path, text, batch, seed=1, weights=None):
    """Weights and buffers under their names, and for one batch of inputs:

    golden.x (U8 images or F64 vectors), golden.noise (the u of dequantize, noise(seed, b, 0)),
    golden.z [B, D] in input order, golden.terms [B, 1 + layers] = base density and the logdet of
    each layer, golden.log_prob [B] = their sums, and golden.grad.NAME, the gradient of
    mean(-log_prob) for each parameter. Metadata: flowood.text, golden.seed.
    """
    flow = twin.randomize(twin.Flow(text), seed)
    size, noise = math.prod(flow.shape), None
    if "dequantize" in text:
        x = torch.randint(0, 256, (batch, *flow.shape), generator=random, dtype=torch.uint8)
        x.view(batch, -1)[0, :2] = torch.tensor([0, 255])
        noise = torch.tensor(np.stack([twin.noise(seed, b, 0, size) for b in range(batch)]))
    else:
        x = rand(batch, size)
    z, terms = flow.encode(x, noise)
    log_prob = terms.sum(1)
    (-log_prob.mean()).backward()
    assert torch.allclose(flow.decode(z), x.flatten(1).double(), atol=1e-9)

    tensors = dict(flow.state_dict())
    tensors.update({"golden.x": x, "golden.z": z, "golden.terms": terms,
                    "golden.log_prob": log_prob})
    if noise is not None:
        tensors["golden.noise"] = noise
    tensors.update({f"golden.grad.{name}": p.grad for name, p in flow.named_parameters()})
    save(path, tensors, {"flowood.text": text, "golden.seed": str(seed)})


def make_train(path):
    """Twenty steps on the mean of -log_prob (nats), from the same weights by four recipes:

    x [20, 1, 4, 4]; batches [20, 8], the samples of each step: the shuffled epochs (seed 3) one
    after the other, so that batches reach over their ends; noise [20, 8, 16], which is noise(seed
    3, sample, draw = epoch). first.NAME are the weights before the first step; RECIPE.loss [20],
    RECIPE.norm [20] (of the whole gradient, before clipping), RECIPE.NAME the weights after the
    last step. The metadata gives each recipe's settings.
    """
    text = ("input 1x4x4\ndequantize\nlogit alpha=0.05\n"
            "coupling mask=checkerboard:0 net=mlp hidden=16 depth=1\n"
            "coupling mask=checkerboard:1 net=mlp hidden=16 depth=1\n")
    first = twin.randomize(twin.Flow(text), 5).state_dict()
    x = torch.randint(0, 256, (20, 1, 4, 4), generator=random, dtype=torch.uint8)
    seen = [(epoch, i) for epoch in range(8) for i in twin.epoch_order(3, epoch, len(x))]
    batches = torch.tensor([i for _, i in seen]).reshape(20, 8)
    noise = torch.tensor(np.stack([twin.noise(3, i, epoch, 16) for epoch, i in seen]))
    noise = noise.reshape(20, 8, 16)
    tensors = {"x": x, "batches": batches, "noise": noise}
    tensors.update({f"first.{name}": p for name, p in first.items()})
    recipes = {"adam": (torch.optim.Adam, dict(lr=1e-2), None),
               "adamw": (torch.optim.AdamW, dict(lr=1e-2, weight_decay=0.1), None),
               "l2": (torch.optim.Adam, dict(lr=1e-2, weight_decay=0.1), None),
               "clip": (torch.optim.Adam, dict(lr=1e-2), 5.0)}
    for name, (optimizer, settings, clip) in recipes.items():
        flow = twin.Flow(text)
        flow.load_state_dict(first)
        parameters = list(flow.parameters())
        step = optimizer(parameters, **settings)
        losses, norms = [], []
        for batch, u in zip(batches, noise):
            step.zero_grad()
            loss = -flow.log_prob(x[batch], u).mean()
            loss.backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
            if clip and norm > clip:
                for p in parameters:
                    p.grad *= clip / norm
            step.step()
            losses.append(loss.detach())
            norms.append(norm)
        tensors.update({f"{name}.loss": torch.stack(losses), f"{name}.norm": torch.stack(norms)})
        tensors.update({f"{name}.{key}": p for key, p in flow.state_dict().items()})
    common = "lr=0.01 beta1=0.9 beta2=0.999 eps=1e-8"
    save(path, tensors, {"flowood.text": text, "adam": common,
                         "adamw": common + " weight_decay=0.1 (decoupled, every parameter)",
                         "l2": common + " weight_decay=0.1 (added to the gradient)",
                         "clip": common + " clip=5 (gradient times min(1, clip/norm))"})


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--full", metavar="FILE", type=pathlib.Path)
    full = arguments.parse_args().full
    twin.check()
    if full:
        make_flow(full, twin.mlp_flow("cycle"), 4)
    else:
        make_ops(HERE / "ops.safetensors")
        for name, (head, batch, layers) in FLOWS.items():
            make_flow(HERE / f"flow_{name}.safetensors", head + "\n".join(layers) + "\n", batch)
        make_train(HERE / "train.safetensors")
