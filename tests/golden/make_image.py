"""Writes the golden fixtures of the image models, all from twin_image.py and PyTorch's autograd.

    python make_image.py                       image_*.safetensors beside this file
    python make_image.py --full FILE           full-size realnvp-small (about 40 MB): not for the
                     [--preset NAME]           repository; or any other preset of twin_image.py

As in make.py everything is float64, and what goes in is exact in float32. Each fixture is also
computed in float32, and is refused when that alone misses the tests' tolerances: a ReLU whose
input lies too near to 0 would make a fair comparison impossible (another seed cures it).
"""

import argparse
import math
import pathlib
import zlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import make
import twin
import twin_image
from make import HERE, rand, save

torch.set_default_dtype(torch.float64)


def in_float32(fn):
    """What fn computes when everything is float32."""
    torch.set_default_dtype(torch.float32)
    try:
        return fn()
    finally:
        torch.set_default_dtype(torch.float64)


def agree(what, wide, narrow, tolerance):
    """Every array of `narrow` is near its twin, measured by the twin's largest value; a gradient by
    no less than 1 % of the largest gradient of all. Batch norm with the batch's statistics cancels
    gains right before it (conv1.weight_g) and constants (in_conv, conv2 and skips .bias): what is
    left there is rounding and eps."""
    kind = [name.rpartition("grad.")[0] for name in wide if "grad." in name]
    largest = {k: max(v.abs().max().item() for name, v in wide.items()
                      if name.startswith(k + "grad.")) for k in kind}
    for name, a in wide.items():
        a, b = a.detach().double(), narrow[name].detach().double()
        size = a.abs().max().clamp(min=1e-3)
        if "grad." in name:
            size = size.clamp(min=0.01 * largest[name.rpartition("grad.")[0]])
        error = ((a - b).abs().max() / size).item()
        assert error < tolerance, f"{what}: {name} is {error:.1e} off in float32"


def begin(path):
    """Each fixture's random numbers are its own: a change in one leaves the others alone."""
    make.random.manual_seed(zlib.crc32(path.stem.encode()))
    return {}, {}


# --- ops ------------------------------------------------------------------------------------------

def make_ops(path):
    """The layout is that of make.py's ops: CASE.in0 ...; CASE.out; CASE.dout; CASE.grad0 ...

    norm_train also has CASE.running_mean and .running_var before and .._after the call.
    """
    tensors, notes = begin(path)

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

    def conv(name, x, w, stride, pad, bias=True):
        case(name, f"conv2d stride={stride} pad={pad} bias={int(bias)}: in0 x, in1 w[O,I,kh,kw]"
             + bias * ", in2 b", lambda *a: F.conv2d(*a, stride=stride, padding=pad),
             rand(*x), rand(*w), *[rand(w[0])] * bias)

    conv("conv_3x3", (2, 3, 6, 5), (4, 3, 3, 3), 1, 1)
    conv("conv_3x3_plain", (2, 3, 6, 5), (4, 3, 3, 3), 1, 1, False)
    conv("conv_3x3_valid", (2, 2, 5, 6), (3, 2, 3, 3), 1, 0)
    conv("conv_3x3_wide", (1, 2, 5, 28), (3, 2, 3, 3), 1, 1)
    conv("conv_3x3_deep", (1, 16, 4, 4), (4, 16, 3, 3), 1, 1)
    conv("conv_3x3_odd", (3, 5, 7, 9), (9, 5, 3, 3), 1, 1)
    conv("conv_3x3_one", (2, 3, 1, 1), (2, 3, 3, 3), 1, 1)
    conv("conv_1x1", (2, 5, 4, 3), (7, 5, 1, 1), 1, 0)
    conv("conv_1x1_plain", (3, 13, 3, 3), (10, 13, 1, 1), 1, 0, False)
    conv("conv_1x1_stride", (2, 3, 5, 4), (2, 3, 1, 1), 2, 0)
    conv("conv_4x4_half", (2, 3, 6, 8), (4, 3, 4, 4), 2, 1)
    conv("conv_4x4_half_odd", (2, 2, 7, 5), (3, 2, 4, 4), 2, 1)
    conv("conv_4x4_grow", (2, 2, 5, 4), (3, 2, 4, 4), 1, 2)
    conv("conv_2x2", (2, 3, 4, 6), (2, 3, 2, 2), 2, 0)
    conv("conv_5x3", (2, 2, 8, 7), (3, 2, 5, 3), 2, 1)
    conv("conv_7x7", (1, 2, 9, 10), (2, 2, 7, 7), 3, 2)

    def conv_transpose(name, x, w, stride, pad, bias=True):
        case(name, f"conv_transpose2d stride={stride} pad={pad} bias={int(bias)}: in0 x, "
             "in1 w[I,O,kh,kw]" + bias * ", in2 b",
             lambda *a: F.conv_transpose2d(*a, stride=stride, padding=pad),
             rand(*x), rand(*w), *[rand(w[1])] * bias)

    conv_transpose("up_4x4_twice", (2, 3, 3, 4), (3, 2, 4, 4), 2, 1)
    conv_transpose("up_4x4_twice_plain", (2, 3, 3, 4), (3, 2, 4, 4), 2, 1, False)
    conv_transpose("up_4x4_same", (2, 4, 5, 4), (4, 3, 4, 4), 1, 1)
    conv_transpose("up_4x4_shrink", (2, 2, 6, 5), (2, 3, 4, 4), 1, 2)
    conv_transpose("up_3x3", (1, 2, 4, 3), (2, 3, 3, 3), 2, 1)
    conv_transpose("up_2x2", (2, 3, 2, 3), (3, 5, 2, 2), 2, 0)

    def norm(name, mode, x):
        layer = twin_image.randomize(twin_image.Norm(x.shape[1]), 7)
        layer.mode = mode
        before = {key: getattr(layer, key).clone() for key in ("running_mean", "running_var")}

        def fn(x, w, b):
            for key, value in before.items():
                getattr(layer, key).copy_(value)
            del layer.weight, layer.bias
            layer.weight, layer.bias = w, b
            return layer(x)

        case(name, f"batch_norm mode={mode} eps=1e-5 momentum=0.1: in0 x, in1 weight, in2 bias",
             fn, x, layer.weight.detach(), layer.bias.detach(), **before)
        if mode == "train":
            tensors.update({f"{name}.{key}_after": getattr(layer, key) for key in before})

    norm("norm_train", "train", rand(3, 4, 5, 2))
    norm("norm_train_large", "train", (20 + rand(4, 3, 6, 7) * 3).float().double())
    norm("norm_running", "running", rand(3, 4, 5, 2))
    constant = rand(3, 3, 4, 2)
    constant[:, 1] = -2.9375                          # variance 0: only eps keeps it finite
    norm("norm_constant", "train", constant)

    for name, shape in (("weight_norm", (4, 3, 3, 3)), ("weight_norm_1x1", (5, 7, 1, 1))):
        case(name, "weight_norm: in0 v[O,I,kh,kw], in1 g[O,1,1,1] -> g v / |v|",
             twin_image.weight_norm, rand(*shape), rand(shape[0], 1, 1, 1))
    case("weight_norm_scale", "weight_norm: in0 v[C,1,1], in1 g[C,1,1] -> g sign(v)",
         lambda v, g: g * (v / v.abs()), rand(6, 1, 1), rand(6, 1, 1))

    case("gate", "in0 gate, in1 new, in2 old -> sigmoid(gate) new + (1 - sigmoid(gate)) old",
         lambda g, a, b: torch.sigmoid(g) * a + (1 - torch.sigmoid(g)) * b,
         *(rand(2, 3, 4, 5) for _ in range(3)))
    case("concat_relu", "relu(concat(in0, -in0)) along axis 1",
         lambda a: torch.relu(torch.cat([a, -a], 1)), rand(2, 3, 4, 3))
    for order in ("plain", "alt"):
        layer = twin_image.Squeeze((3, 4, 6), order)
        case(f"squeeze_{order}", f"squeeze order={order}: [2,3,4,6] -> [2,12,2,3]",
             lambda a: layer.encode(a.flatten(1))[0].view(2, 12, 2, 3), rand(2, 3, 4, 6))
        back = twin_image.Squeeze((12, 2, 3), order, back=True)
        case(f"unsqueeze_{order}", f"unsqueeze order={order}: [2,12,2,3] -> [2,3,4,6]",
             lambda a: back.encode(a.flatten(1))[0].view(2, 3, 4, 6), rand(2, 12, 2, 3))
    for n in (1, 2, 4, 9):
        case(f"slogdet_{n}", "slogdet: log |det in0| -> [1]",
             lambda a: torch.linalg.slogdet(a)[1].reshape(1), rand(n, n))
        case(f"inverse_{n}", "inverse of in0", torch.linalg.inv, rand(n, n))
    conv("tiles", (3, 8, 7, 6), (9, 8, 3, 3), 1, 1)        # where kernels go by tiles of 2 x 2
    conv("tiles_valid", (2, 10, 5, 9), (8, 10, 3, 3), 1, 0)
    conv("tiles_grow", (2, 8, 4, 3), (8, 8, 3, 3), 1, 2, False)
    conv("tiles_wide", (1, 8, 3, 37), (8, 8, 3, 3), 1, 1)
    conv_transpose("tiles_up", (2, 8, 5, 4), (8, 9, 3, 3), 1, 1)
    save(path, tensors, notes)


# --- st-networks ----------------------------------------------------------------------------------

NETS = {   # channels in, maps out, height, width; what the text of a coupling would say
    "resnet": ((2, 4, 6, 5), "net=resnet channels=3 blocks=2"),
    "resnet_double": ((1, 2, 4, 6), "net=resnet channels=3 blocks=1"),
    "resnet_neck": ((1, 2, 4, 4), "net=resnet channels=2 blocks=3 skip=0 neck=4"),
    "highway": ((2, 4, 5, 4), "net=highway channels=3"),
    "highway_two": ((1, 2, 4, 6), "net=highway channels=4 depth=2"),
    "glow": ((2, 4, 4, 5), "net=glow channels=7"),
    "autoencoder": ((1, 2, 8, 4), "net=autoencoder channels=2 neck=3"),
}


def net_of(name):
    (inputs, outputs, h, w), text = NETS[name]
    options = dict(option.split("=") for option in text.split())
    return twin_image.NETS[options.pop("net")]((inputs, h, w), outputs, name.endswith("double"),
                                               **options)


def run_net(name, seed, x, dout):
    """Everything that one net computes, {suffix: array}; with batch norm in both modes."""
    net = twin_image.randomize(net_of(name), seed)
    norms = [m for m in net.modules() if isinstance(m, twin_image.Norm)]
    x = x.to(torch.get_default_dtype())
    found, names = {}, [n for n, _ in net.named_parameters()]
    for mode, prefix in [("running", ""), ("train", "train.")][:2 if norms else 1]:
        for norm in norms:
            norm.mode = mode
        inputs = [x.clone().requires_grad_(), *net.parameters()]
        out = net(inputs[0])
        grads = torch.autograd.grad(out, inputs, dout.to(x.dtype))
        found[f"{prefix}out"] = out
        found.update({f"{prefix}grad.{n}": g for n, g in zip(["x"] + names, grads)})
    found.update({f"train.after.{n}": b for n, b in net.named_buffers() if "running" in n})
    return net, found


def make_nets(path):
    """CASE.x, CASE.NAME (weights and buffers); CASE.out for CASE.dout, CASE.grad.x and
    CASE.grad.NAME with running statistics; if there is batch norm also CASE.train.out and so on
    with the batch's statistics, and the buffers that leaves: CASE.train.after.NAME. Some of those
    gradients are 0 but for rounding: see agree().

    The metadata of CASE: the text, the channels in and out, and double=1 where the output of the
    first batch norm is to be doubled, as under checkerboard masks.
    """
    tensors, notes = begin(path)
    for seed, (name, ((inputs, outputs, h, w), text)) in enumerate(NETS.items(), 11):
        x, dout = rand(3, inputs, h, w), rand(3, outputs, h, w)
        before = {n: p.clone() for n, p in
                  twin_image.randomize(net_of(name), seed).state_dict().items()}
        _, found = run_net(name, seed, x, dout)
        _, narrow = in_float32(lambda: run_net(name, seed, x, dout))
        agree(name, found, narrow, 5e-5)
        found.update({"x": x, "dout": dout, **before})
        tensors.update({f"{name}.{n}": t for n, t in found.items()})
        notes[name] = (f"{text} in={inputs} out={outputs} "
                       f"double={int(name.endswith('double'))}")
    save(path, tensors, notes)


# --- flows ----------------------------------------------------------------------------------------

NVP = twin_image.realnvp(3, 1, "1x8x8", scales=2)
FLOWS = {                                       # text, batch, seed
    "realnvp": (NVP, 3, 1),
    "alt": ("""input 3x4x8
dequantize
logit alpha=0.05
coupling mask=checkerboard:1 net=resnet channels=3 blocks=1
squeeze
coupling mask=channel:1 net=resnet channels=4 blocks=1
unsqueeze
squeeze order=alt
split
coupling mask=channel:0 net=resnet channels=3 blocks=1
permute reverse=1
split
additive mask=horizontal:1 net=resnet channels=2 blocks=1
""", 3, 1),
    "spatial": ("""input 1x8x8
dequantize
logit alpha=0.05
coupling mask=cycle:0 net=resnet channels=3 blocks=2 skip=0 neck=4
coupling mask=cycle:1 net=resnet channels=3 blocks=1 skip=0
coupling mask=cycle:2 net=autoencoder channels=2 neck=3
coupling mask=horizontal:0 net=highway channels=3
coupling mask=vertical:1 net=glow channels=4
additive mask=checkerboard:0 net=resnet channels=2 blocks=1 skip=0
coupling mask=alternating:0 net=glow channels=3
coupling mask=cycle:0 net=mlp hidden=6 bottleneck=2
""", 3, 1),
    "glow": ("""input 3x8x8
dequantize
logit alpha=0.05
squeeze
actnorm
conv1x1
coupling mask=channel:0 net=highway channels=3
actnorm
conv1x1 lu=1
coupling mask=channel:0 net=highway channels=3
split
squeeze
actnorm
permute seed=3
coupling mask=channel:1 net=glow channels=4
actnorm
conv1x1
additive mask=channel:0 net=glow channels=4
""", 3, 1),
    "odd": ("""input 3x6x10
dequantize
logit alpha=0.01
coupling mask=channel:0 net=resnet channels=3 blocks=1
coupling mask=cycle:1 net=resnet channels=2 blocks=1
permute reverse=1
conv1x1 lu=1
squeeze
coupling mask=channel:1 net=resnet channels=3 blocks=1
split
coupling mask=cycle:2 net=glow channels=3
coupling mask=checkerboard:1 net=highway channels=3 depth=2
""", 2, 1),
}


def run_flow(text, seed, x, noise):
    """z, terms, log_prob and grad.NAME of mean(-log_prob), with running statistics; with batch
    norm the same once more as train.*, and train.after.NAME, the buffers which that leaves."""
    flow = twin_image.randomize(twin_image.Flow(text), seed)
    noise = noise.to(torch.get_default_dtype())
    found, before = {}, {n: p.clone() for n, p in flow.state_dict().items()}
    for mode, prefix in [("running", ""), ("train", "train.")][:2 if flow.norms("train") else 1]:
        flow.norms(mode)
        flow.zero_grad()
        z, terms = flow.encode(x, noise)
        log_prob = terms.sum(1)
        (-log_prob.mean()).backward()
        found.update({f"{prefix}z": z, f"{prefix}terms": terms, f"{prefix}log_prob": log_prob})
        found.update({f"{prefix}grad.{n}": p.grad.clone() for n, p in flow.named_parameters()})
    found.update({f"train.after.{n}": b.clone() for n, b in flow.named_buffers()
                  if "running" in n})
    return flow, before, found


def make_flow(path, text, batch, seed=1, strict=True):
    """As make.py's flows: golden.x (U8), golden.noise, golden.z, golden.terms, golden.log_prob,
    golden.grad.NAME, with running statistics; z lies as after the last layer, behind it what the
    splits took out, the last split's first, and golden.pixel [D] is the flat input index of the
    place that each element of z was moved from. With batch norm also golden.train.z, .terms,
    .log_prob, .grad.NAME with the batch's own statistics and golden.train.after.NAME, the
    running statistics that this leaves.
    """
    begin(path)
    shape = twin_image.Flow(text).shape
    size = math.prod(shape)
    x = torch.randint(0, 256, (batch, *shape), generator=make.random, dtype=torch.uint8)
    x.view(batch, -1)[0, :2] = torch.tensor([0, 255])
    noise = torch.tensor(np.stack([twin.noise(seed, b, 0, size) for b in range(batch)]))
    flow, before, found = run_flow(text, seed, x, noise)
    if strict:
        _, _, narrow = in_float32(lambda: run_flow(text, seed, x, noise))
        agree(path.name, found, narrow, 5e-5)
    flow.load_state_dict(before)
    flow.norms("running")
    back = (flow.decode(found["z"]) - x.flatten(1)).abs().max().item()
    assert back < 1e-6 or not strict, back
    tensors = {**before, "golden.x": x, "golden.noise": noise, "golden.pixel": flow.places()}
    tensors.update({f"golden.{n}": t for n, t in found.items()})
    save(path, tensors, {"flowood.text": text, "golden.seed": str(seed)})


def make_actnorm(path):
    """What the first batch does to fresh actnorms: x [6, 3, 4, 4], whose channel 1 is constant
    0.25; the weights under their names, measured = 0; after.NAME and z, log_prob after it, which
    a second look at the same x must repeat."""
    begin(path)
    text = "input 3x4x4\nactnorm\nconv1x1\nactnorm\nsqueeze\nsplit\nactnorm\n"
    flow = twin_image.randomize(twin_image.Flow(text), 9)
    x = 2 + 3 * torch.randn(6, 3, 4, 4, generator=make.random).float().double()
    x[:, 1] = 0.25
    for layer in flow:
        if isinstance(layer, twin_image.ActNorm):
            layer.measured.zero_()
    tensors = {"x": x, **{n: p.clone() for n, p in flow.state_dict().items()}}
    z, terms = flow.encode(x)
    assert torch.allclose(flow.encode(x)[0], z) and torch.isfinite(z).all()
    assert abs(flow[0].log_scale[1]) == 0
    tensors.update({f"after.{n}": p for n, p in flow.state_dict().items()})
    save(path, {**tensors, "z": z, "log_prob": terms.sum(1)}, {"flowood.text": text})


# --- a state_dict of PyTorch's own modules --------------------------------------------------------

def make_names(path):
    """The state_dict of a model whose `flow` has nn.Conv2d with parametrized weight norm and
    nn.BatchNorm2d, under the names PyTorch gives them, as float32; golden.x, golden.log_prob."""
    begin(path)
    flow = twin_image.randomize(twin_image.Flow(NAMES), 5).eval()
    x = torch.randint(0, 256, (3, *flow.shape), generator=make.random, dtype=torch.uint8)
    noise = torch.tensor(np.stack([twin.noise(5, b, 0, math.prod(flow.shape)) for b in range(3)]))
    want = flow.log_prob(x, noise)
    twin_image.torch_modules(flow)
    model = nn.Module()
    model.flow = flow
    log_prob = model.eval().flow.log_prob(x, noise)
    assert torch.allclose(log_prob, want, rtol=1e-12)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    assert any("original0" in n for n in tensors) and any("num_batches" in n for n in tensors)
    save(path, {**tensors, "golden.x": x, "golden.log_prob": log_prob},
         {"flowood.text": NAMES, "golden.seed": "5"})


NAMES = """input 1x8x8
dequantize
logit alpha=0.05
coupling mask=checkerboard:0 net=resnet channels=3 blocks=1
coupling mask=cycle:0 net=resnet channels=2 blocks=1 skip=0 neck=4
squeeze
actnorm
conv1x1
coupling mask=channel:0 net=highway channels=3
"""


# --- training -------------------------------------------------------------------------------------

STEPS, BATCH, IMAGES = 20, 4, 20
FLOOR = -900.0                                   # negative training: low enough for an OOD sample

RECIPES = {
    "adam": "adam lr=0.002 beta1=0.9 beta2=0.999 eps=1e-8",
    "decay": "adam lr=0.002 beta1=0.9 beta2=0.999 eps=1e-8 weight_decay=0.1 (added to the "
             "gradient of weight_g only, after clipping) clip=100 (times min(1, 100/norm))",
    "rmsprop": "rmsprop lr=0.0005 alpha=0.99 eps=1e-8",
    "negative": "adam lr=0.002 beta1=0.9 beta2=0.999 eps=1e-8; the batch is 4 of x, then 4 of ood: "
                f"loss = (sum of -log_prob of x + sum of log_prob of those ood above {FLOOR}) / 8",
}


def optimizer_of(recipe, flow):
    parameters = dict(flow.named_parameters())
    if recipe == "rmsprop":
        return torch.optim.RMSprop(parameters.values(), lr=5e-4)
    gains = [p for n, p in parameters.items() if n.endswith("weight_g")]
    others = [p for n, p in parameters.items() if not n.endswith("weight_g")]
    decay = 0.1 if recipe == "decay" else 0
    return torch.optim.Adam([dict(params=gains, weight_decay=decay), dict(params=others)], lr=2e-3)


def run_training(recipe, first, x, ood, batches, noise, noise_ood):
    """loss and norm (before clipping) of each step, how many OOD samples pulled, and the flow"""
    flow = twin_image.Flow(NVP)
    flow.load_state_dict(first)
    flow.norms("train")
    optimizer, found = optimizer_of(recipe, flow), {"loss": [], "norm": [], "alive": []}
    for batch, u, v in zip(batches, noise, noise_ood):
        optimizer.zero_grad()
        alive = torch.zeros(1)
        if recipe == "negative":
            log_prob = flow.log_prob(torch.cat([x[batch], ood[batch]]), torch.cat([u, v]))
            out = log_prob[BATCH:]
            alive = (out.detach() > FLOOR).to(out.dtype)
            loss = ((out * alive).sum() - log_prob[:BATCH].sum()) / (2 * BATCH)
        else:
            loss = -flow.log_prob(x[batch], u).mean()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in flow.parameters()))
        if recipe == "decay" and norm > 100:
            for p in flow.parameters():
                p.grad *= 100 / norm
        optimizer.step()
        for key, value in (("loss", loss), ("norm", norm), ("alive", alive.sum())):
            found[key].append(value.detach())
    return flow, {key: torch.stack(value) for key, value in found.items()}


def make_train(path):
    """Twenty steps of a small realnvp, batch norm with the batch's statistics, by four recipes:

    x and ood [20, 1, 8, 8]; batches [20, 4] as in make.py (seed 3); noise and noise_ood
    [20, 4, 64]: noise(seed 3, sample, epoch), and noise(seed 4, ...) for ood; still [20, 64]:
    noise(seed 3, sample, epoch 0). first.NAME are the
    weights and buffers before the first step; RECIPE.loss [20], RECIPE.norm [20] (before
    clipping), negative.alive [20] (the OOD samples still above the floor). After the last step,
    for x[0:4] with still[0:4], log_prob: RECIPE.running with running statistics,
    adam.batch with their own, and adam.recalibrated after one pass over x in five batches of
    four with still.

    Gains right before a batch norm (conv1.weight_g) and constants that one cancels have no
    gradient but rounding, which Adam blows up to full steps: these weights wander, and with them
    the running statistics, which lag behind. Losses, norms and scores with batch statistics feel
    nothing of it; RECIPE.running (float32 alone moves it by up to 0.4 %) is to be compared
    within 2 %.
    """
    begin(path)
    torch.manual_seed(31)
    fresh = twin_image.Flow(NVP)
    first = {n: (p.float().double() if p.is_floating_point() else p).clone()
             for n, p in fresh.state_dict().items()}
    smooth = torch.rand(IMAGES, 1, 3, 3, generator=make.random)       # something to be learned
    x = F.interpolate(smooth, (8, 8), mode="bilinear", align_corners=True)
    x = (x * 255).round().to(torch.uint8)
    ood = torch.randint(0, 256, (IMAGES, 1, 8, 8), generator=make.random, dtype=torch.uint8)
    seen = [(epoch, i) for epoch in range(STEPS * BATCH // IMAGES)
            for i in twin.epoch_order(3, epoch, IMAGES)]
    batches = torch.tensor([i for _, i in seen]).reshape(STEPS, BATCH)
    noise, noise_ood = (torch.tensor(np.stack([twin.noise(seed, i, epoch, 64)
                        for epoch, i in seen])).reshape(STEPS, BATCH, 64) for seed in (3, 4))
    still = torch.tensor(np.stack([twin.noise(3, i, 0, 64) for i in range(IMAGES)]))
    tensors = {"x": x, "ood": ood, "batches": batches, "noise": noise, "noise_ood": noise_ood,
               "still": still}
    tensors.update({f"first.{n}": p for n, p in first.items()})

    def everything(recipe):
        dtype = torch.get_default_dtype()
        u, v, s = (t.to(dtype) for t in (noise, noise_ood, still))
        flow, found = run_training(recipe, first, x, ood, batches, u, v)
        with torch.no_grad():
            flow.norms("running")
            found["running"] = flow.log_prob(x[:4], s[:4])
            if recipe == "adam":
                flow.norms("batch")
                found["batch"] = flow.log_prob(x[:4], s[:4])
                flow.recalibrate([(x[i:i + 4], s[i:i + 4]) for i in range(0, IMAGES, 4)])
                found["recalibrated"] = flow.log_prob(x[:4], s[:4])
        return found

    for recipe in RECIPES:
        found = everything(recipe)
        narrow = in_float32(lambda: everything(recipe))
        agree(recipe, {"loss": found["loss"]}, narrow, 1e-4)
        worst = {key: f"{((found[key] - narrow[key]).abs().max() / found[key].abs().max()):.0e}"
                 for key in found if key != "alive"}
        print(f"  {recipe}: loss {found['loss'][0]:.1f} -> {found['loss'][-1]:.1f}, alive "
              f"{found['alive'].int().tolist()}, float32 is off by {worst}")
        if recipe != "negative":
            del found["alive"]
        tensors.update({f"{recipe}.{key}": value for key, value in found.items()})
    save(path, tensors, {"flowood.text": NVP, **RECIPES, "negative.floor": str(FLOOR)})


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--full", metavar="FILE", type=pathlib.Path)
    arguments.add_argument("--preset", choices=twin_image.PRESETS, default="realnvp-small")
    arguments = arguments.parse_args()
    if arguments.full:
        make_flow(arguments.full, twin_image.PRESETS[arguments.preset][0], 4, strict=False)
    else:
        twin_image.check()
        make_ops(HERE / "image_ops.safetensors")
        make_nets(HERE / "image_nets.safetensors")
        for name, (text, batch, seed) in FLOWS.items():
            make_flow(HERE / f"image_{name}.safetensors", text, batch, seed)
        make_actnorm(HERE / "image_actnorm.safetensors")
        make_names(HERE / "image_names.safetensors")
        make_train(HERE / "image_train.safetensors")
