#!/usr/bin/env python3
"""Turns a checkpoint of the paper's own code (flows_ood) into one that flowood loads.

    python3 from_flows_ood.py STATE OUT.safetensors --model MODEL [--shape 1x28x28]
    flowood score --model OUT.safetensors --data FILE

STATE is what torch.save wrote: a state_dict, or a dict in which one is found. MODEL is

    realnvp     scales of 3 checkerboard and 3 channel couplings, 4 checkerboard ones at the end
    cycle       couplings that condition on quadrant 0, 1, 2, 3, 0, ... (clockwise from top left)
    horizontal  couplings between top and bottom half
    glow        steps of actnorm, 1x1 convolution and channel coupling, squeezed at each scale
    tabular     vectors: couplings between the halves, st-networks of linear layers with ReLU

Needs torch and nothing else. Sizes are read off the weights, so that wrong ones cannot be asked
for. St-networks: the ResNet (with or without skips, batch norm and bottleneck), Glow's
convolutions, the highway network, linear layers. A weight that has no place here is an error.

What is different on the two sides, and stays so:

  log p     theirs is lower by D log(256/255), 3.0685 nats or 0.0056 bpd at 28x28, because their
            dequantization scales by 255/256 first and log 256 is taken off once more. Tabular
            models have no such term.
  latents   theirs are [split, final], ours [final, split].
  ResNet    with a bottleneck and one block: theirs has the bottleneck's weights but never applies
            them. Here they are left out, so that log p is the same.
  tabular   scores the data that the model saw: standardise them as you did for training.
"""

import argparse
import array
import json
import math
import re
import struct
import sys

import torch


class Refused(Exception):
    """The one line that the user reads."""


# --- in -------------------------------------------------------------------------------------------

def is_state(value):
    return isinstance(value, dict) and len(value) > 0 and all(map(torch.is_tensor, value.values()))


def read_state(path, key):
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Refused(f"{path}: {str(error).splitlines()[0]}; save the state_dict alone: "
                      "torch.save(model.state_dict(), path)")
    if not is_state(found):
        inner = {k: v for k, v in found.items() if is_state(v)} if isinstance(found, dict) else {}
        names = [key] if key in inner else list(inner)
        if len(names) != 1:
            raise Refused(f"{path}: one state_dict is needed, {len(names)} were found"
                          + (f": choose by --key from {', '.join(names)}" if names else ""))
        found = inner[names[0]]
    return found


def read_layers(state):
    """[weights of a layer by the rest of their name], in the order of the modules: that is the
    order of a state_dict. Both of PyTorch's spellings of a weight norm become the older."""
    layers = {}
    for name, tensor in state.items():
        name = re.sub(r"parametrizations\.weight\.original([01])$",
                      lambda match: ("weight_g", "weight_v")[int(match[1])], name)
        coupling = re.match(r"(.*?)((?:st_net|rescale)\..*)$", name)
        path, rest = coupling.groups() if coupling else re.match(r"(.*?)([^.]*)$", name).groups()
        if not name.endswith("num_batches_tracked"):
            layers.setdefault(path, {})[rest] = tensor.double() if tensor.dtype == torch.float64 \
                else tensor.float()
    return list(layers.values())


def unknown(names):
    names = sorted(names)
    raise Refused(f"{len(names)} weights have no place in a flow of this kind: "
                  + ", ".join(names[:4]) + (", ..." if len(names) > 4 else ""))


# --- st-networks: (weights under our names, settings of the coupling's line) ----------------------

def resnet(net):
    renames = ((r"\.conv\.(weight_[gv]|bias)$", r".\1"), (r"^bottleneck\.", "neck."),
               (r"^skips\.(\d+)\.", lambda match: f"skips.{int(match[1]) + 1}."),
               (r"^in_skip\.", "skips.0."),
               (r"^(blocks\.\d+)\.in_(norm|conv)\.", r"\1.\g<2>1."),
               (r"^(blocks\.\d+)\.out_(norm|conv)\.", r"\1.\g<2>2."))
    known = r"(in_norm|out_norm|in_conv|out_conv|skips|blocks|neck)\."
    out = {}
    for name, tensor in net.items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        out[name] = tensor
    if not all(re.match(known, name) for name in out):
        unknown(name for name in out if not re.match(known, name))
    blocks = sum(bool(re.match(r"blocks\.\d+\.conv1\.weight_v$", name)) for name in out)
    neck, skips = out.get("neck.0.weight"), any(name.startswith("skips.") for name in out)
    text = f"net=resnet channels={len(out['in_conv.weight_v'])} blocks={blocks}"
    if neck is not None and blocks == 1:         # there, but never applied
        out = {name: tensor for name, tensor in out.items() if not name.startswith("neck.")}
    if neck is not None and blocks > 1:
        text += f" bottleneck={len(neck)}"
    elif not skips:
        text += " skip=0"
    return out, text + ("" if "in_norm.weight" in out else " norm=0")


def glow_convnet(net):
    """A sequence of 3 convolutions with ReLU between them."""
    out = {}
    for name, tensor in net.items():
        place, part = re.match(r"(\d+)\.(?:conv\.)?(\w+)$", name).groups()
        out[f"conv{int(place) // 2 + 1}.{part}"] = tensor
    return out, f"net=glow channels={len(out['conv1.weight'])}"


def highway(net):
    """The first convolution and the 1x1 at the end; between them pairs, of which one is named gate.
    Theirs has no ReLU."""
    convolutions = [name[:-len("weight")] for name in net if name.endswith("weight")]
    if set(net) != {path + part for path in convolutions for part in ("weight", "bias")}:
        unknown("st_net." + name for name in net)
    out, layers = {}, {"gate": 0, "conv": 0}
    for path in convolutions:
        role = "gate" if "gate" in path else "conv"
        if path == convolutions[0]:
            place = "in_conv"
        elif net[path + "weight"].shape[-1] == 1:
            place = "out_conv"
        else:
            place, layers[role] = f"highway.{layers[role]}.{role}", layers[role] + 1
        out.update({f"{place}.{part}": net[path + part] for part in ("weight", "bias")})
    return out, (f"net=highway channels={len(out['in_conv.weight'])} depth={layers['gate']} "
                 "act=none")


def halves(size, phase):
    """The numbers of a vector that a coupling looks at, and those that it changes."""
    first = list(range(size // 2)), list(range(size // 2, size))
    return first[::-1] if phase % 2 else first


def tabular(net, phase):
    """Theirs sees the whole vector, zero where it must not look, and answers for all of it: here
    the columns and rows without meaning are gone."""
    names = sorted((name for name in net if name.endswith("weight")),
                   key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    size = net[names[0]].shape[1]
    condition, change = halves(size, phase)
    out = {}
    for i, name in enumerate(names):
        weight, bias = net[name], net[re.sub("weight$", "bias", name)]
        if i == 0:
            weight = weight[:, condition]
        if i == len(names) - 1:
            rows = change + [size + row for row in change]
            weight, bias = weight[rows], bias[rows]
        out[f"{i}.weight"], out[f"{i}.bias"] = weight, bias
    hidden = {len(net[name]) for name in names[:-1]}
    if len(names) < 2 or len(hidden) != 1:
        raise Refused(f"an st-network of {len(names)} linear layers, hidden {sorted(hidden)}: one "
                      "hidden layer at least, and all of one width, are needed")
    return out, f"net=mlp hidden={hidden.pop()} depth={len(names) - 1} act=relu"


def image_net(net):
    if "in_conv.conv.weight_v" in net or "in_conv.weight_v" in net:
        return resnet(net)
    if any("gate" in name for name in net):
        return highway(net)
    if all(re.match(r"[024]\.(conv\.)?(weight|bias)$", name) for name in net):
        return glow_convnet(net)
    unknown("st_net." + name for name in net)


# --- layers ---------------------------------------------------------------------------------------

def is_coupling(layer):
    return any(name.startswith("st_net.") for name in layer)


def coupling(layer, mask, phase):
    net = {name[7:]: tensor for name, tensor in layer.items() if name.startswith("st_net.")}
    gain, sign = layer["rescale.weight_g"], layer["rescale.weight_v"]
    if mask == "halves":
        out, text = tabular(net, phase)
        change = halves(gain.numel(), phase)[1]
        scale = {"scale": (gain.flatten() * sign.flatten().sign())[change]}
    else:
        out, text = image_net(net)
        scale = {"rescale.weight_g": gain.reshape(-1, 1, 1),
                 "rescale.weight_v": sign.reshape(-1, 1, 1)}
    return f"coupling mask={mask}:{phase} {text}", \
        {**scale, **{f"net.{name}": tensor for name, tensor in out.items()}}


def convert_layer(layer, mask, phase):
    """(line of the flow's text, weights under our names)"""
    if is_coupling(layer):
        return coupling(layer, mask, phase)
    if set(layer) == {"bias", "logs"}:
        return "actnorm", {"bias": layer["bias"].flatten(), "log_scale": layer["logs"].flatten(),
                           "measured": torch.ones(1)}
    if set(layer) == {"weight"} and layer["weight"].dim() == 2:
        return "conv1x1", {"weight": layer["weight"]}
    unknown(layer)


def usual_masks(model, count):
    """(mask, reverse_mask or quadrant) of each coupling."""
    if model != "realnvp":
        kind, sides = {"cycle": ("cycle", 4), "horizontal": ("horizontal", 2),
                       "glow": ("channel", 1), "tabular": ("halves", 2)}[model]
        return [(kind, i % sides) for i in range(count)]
    if count < 4 or (count - 4) % 6:
        raise Refused(f"{count} couplings: RealNVP has 4, 10 or 16 of them, 6 a scale and 4 at the "
                      "last")
    scale = [("checkerboard", side) for side in (0, 1, 0)] + \
            [("channel", side) for side in (0, 1, 0)]
    return scale * ((count - 4) // 6) + [("checkerboard", side) for side in (0, 1, 0, 1)]


def convert(layers, model, shape, sides):
    """(the flow's text, every array of the file by name)"""
    masks = usual_masks(model, sum(map(is_coupling, layers)))
    if sides:
        if len(sides) != len(masks):
            raise Refused(f"--masks has {len(sides)} numbers for {len(masks)} couplings")
        masks = [(kind, side) for (kind, _), side in zip(masks, sides)]
    lines, arrays, channels, last = [f"input {shape}"], {}, 0, ""
    if model != "tabular":
        lines += ["dequantize", "logit alpha=0.05"]
    for layer in layers:
        mask, side = masks[0] if masks else ("", 0)
        # their reverse_mask is our phase, but for the masks that begin on the other side
        line, weights = convert_layer(layer, mask, 1 - side if mask in ("checkerboard", "channel")
                                      else side)
        if model == "glow" and line == "actnorm" and len(weights["bias"]) != channels:
            if channels and len(weights["bias"]) != 2 * channels:
                raise Refused(f"actnorm of {len(weights['bias'])} channels after {channels}")
            lines += ["split", "squeeze"] if channels else ["squeeze"]
            channels = len(weights["bias"])
        if model == "realnvp" and (last, mask) == ("checkerboard", "channel"):
            lines.append("squeeze")
        if model == "realnvp" and (last, mask) == ("channel", "checkerboard"):
            lines.append("split")
        arrays.update({f"{len(lines) - 1}.{name}": tensor for name, tensor in weights.items()})
        lines.append(line)
        if is_coupling(layer):
            masks, last = masks[1:], mask
    return "\n".join(lines) + "\n", arrays


# --- out: 8 bytes of length, a header of JSON, little-endian values -------------------------------

def write_safetensors(path, text, arrays):
    header, at, values = {"__metadata__": {"flowood.version": "1", "flowood.text": text}}, 0, []
    for name, tensor in arrays.items():
        wide = tensor.dtype == torch.float64
        value = array.array("d" if wide else "f", tensor.flatten().tolist())
        if sys.byteorder == "big":
            value.byteswap()
        values.append(value.tobytes())
        header[name] = {"dtype": "F64" if wide else "F32", "shape": list(tensor.shape),
                        "data_offsets": [at, at + len(values[-1])]}
        at += len(values[-1])
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        for value in values:
            file.write(value)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("state", metavar="STATE")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--model", required=True,
                        choices=("realnvp", "cycle", "horizontal", "glow", "tabular"))
    parser.add_argument("--shape", default="1x28x28", help="CxHxW of an image; default 1x28x28")
    parser.add_argument("--masks", metavar="N,N,...", help="reverse_mask (cycle: the quadrant it "
                        "sees) of each coupling, where it is not the usual one")
    parser.add_argument("--key", help="which entry of STATE is the state_dict")
    given = parser.parse_args(arguments)
    layers = read_layers(read_state(given.state, given.key))
    shape, sides = given.shape, [int(side) for side in given.masks.split(",")] if given.masks \
        else None
    if not any(map(is_coupling, layers)):
        raise Refused(f"{given.state}: no weights are named st_net: this is no flow of that code")
    if given.model == "tabular":
        first = next(tensor for name, tensor in layers[0].items() if name.endswith("weight"))
        shape = str(first.shape[1])
    text, arrays = convert(layers, given.model, shape, sides)
    write_safetensors(given.out, text, arrays)
    count = sum(tensor.numel() for tensor in arrays.values())
    print(f"{given.out}: {count} numbers\n{text}", end="")
    if given.model != "tabular":
        size = math.prod(int(number) for number in shape.split("x"))
        print(f"log p in the paper's code is lower by {size * math.log(256 / 255):.4f} nats")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (Refused, OSError) as error:
        sys.exit(f"from_flows_ood: {error}")
