"""Writes trace.safetensors: what every layer of the golden flows made of their samples.

    python make_trace.py        reads flow_*.safetensors and image_*.safetensors beside this file

FILE.K.state [B, D] is the state after layer K, for FILE's golden.x and noise 1/2 in dequantize; it
lies as z does: what comes through the layer, then what the splits took out, the last split's first.
FILE.K.s and FILE.K.t of a coupling lie like the state before it, zero where nothing changes.
float32, computed in float64.
"""

import pathlib

import torch
from safetensors import safe_open

import make
import twin
import twin_image

HERE = pathlib.Path(__file__).parent
FILES = ["flow_channels", "flow_odd", "flow_vector", "image_realnvp", "image_alt", "image_spatial",
         "image_glow"]


def st_of(layer, h):
    """s and t [B, width] at the places of the elements that change"""
    if isinstance(layer, twin_image.Coupling):
        s, t = layer.st(h.view(-1, *layer.shape))
        return (s * layer.gives).flatten(1), (t * layer.gives).flatten(1)
    s, t = layer.st(h)
    return (torch.zeros_like(h).index_copy(1, layer.changed, v) for v in (s, t))


def trace(name):
    with safe_open(HERE / f"{name}.safetensors", "pt") as file:
        text = file.metadata()["flowood.text"]
        flow = (twin_image if name.startswith("image") else twin).Flow(text)
        flow.load_state_dict({n: file.get_tensor(n) for n in file.keys()
                              if not n.startswith("golden.")})
        h = file.get_tensor("golden.x").flatten(1).double()
    if name.startswith("image"):
        flow.norms("running")
    h, latent, found = h + (0.5 if "dequantize" in text else 0), [], {}
    for k, layer in enumerate(flow):
        if isinstance(layer, (twin.Coupling, twin_image.Coupling)):
            for what, value in zip("st", st_of(layer, h)):
                found[f"{name}.{k}.{what}"] = torch.cat([value] + [0 * v for v in latent], 1)
        if isinstance(layer, twin_image.Split):
            h, out = h.chunk(2, 1)
            latent = [out] + latent
        else:
            h, _ = layer.encode(h)
        found[f"{name}.{k}.state"] = torch.cat([h] + latent, 1)
    return found


if __name__ == "__main__":
    with torch.no_grad():
        found = {key: value.float() for name in FILES for key, value in trace(name).items()}
    make.save(HERE / "trace.safetensors", found, {"about": "see make_trace.py"})
