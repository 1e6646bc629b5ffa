"""Makes inception.npz: what torch-fidelity finds on random weights and images.

Weights, images and features are drawn by NumPy from a seed, here and in the tests; the file holds
results only. Needs torch and torch-fidelity 0.4.0 (torchvision may be absent):

    python tests/parity/make_inception.py
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

PACK = Path(__file__).with_name("inception.npz")
LAYERS = ("64", "192", "768", "2048", "logits", "logits_unbiased")
SIZES = ((40, 56), (299, 299), (333, 500), (8, 8))
# The second set is another draw of the first sizes, for distances between two sets.
SETS = {"a": 0, "b": 1}
SPATIAL = "spatial"


def weights(shapes, seed=0):
    """Returns random tensors that keep signals in range, with statistics far from 0 and 1."""
    state = {}
    for name, shape in shapes.items():
        # In whatever order the names come.
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name.endswith(("bn.weight", "bn.running_var")):
            state[name] = rng.uniform(0.75, 1.25, shape).astype(np.float32)
            continue
        scale = 0.02 if name.startswith("fc") else 0.1
        if name.endswith("conv.weight"):
            scale = np.sqrt(2 / np.prod(shape[1:]))
        state[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return state


def image(seed, height, width):
    """Returns uint8 [height, width, 3]: gradients, an edge, and noise, no two axes alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    slopes = rng.uniform(-120, 120, (2, 3))
    base = 128 + y[..., None] * slopes[0] + x[..., None] * slopes[1]
    base += 90 * ((x + 2 * y)[..., None] > rng.uniform(0.5, 2.0, 3))
    return np.clip(base + rng.normal(0, 20, base.shape), 0, 255).astype(np.uint8)


def images(name):
    """Returns the images of a set, of the sizes in SIZES."""
    return [image(100 * SETS[name] + i, *size) for i, size in enumerate(SIZES)]


def features(seed, rows, dims, shift=0.0):
    """Returns float32 [rows, dims], correlated and of unequal scales."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((dims, dims)) / np.sqrt(dims)
    return (rng.standard_normal((rows, dims)) @ mixing + shift).astype(np.float32)


# name: rows and dimensions of two sets of features; of logits, one
DISTANCES = {"many": (300, 260, 48), "few": (30, 36, 48)}
SCORES = {"even": (200, 12), "uneven": (57, 12)}
KID = {"kid_subsets": 20, "kid_subset_size": 25}


def pairs(name):
    """Returns the two sets of features of a row of DISTANCES."""
    n, m, dims = DISTANCES[name]
    return features(1, n, dims), features(2, m, dims, 0.1)


def libraries():
    """Returns (torch, modules of torch-fidelity by their last name); torchvision may be absent."""
    torch = importlib.import_module("torch")
    try:
        importlib.import_module("torchvision")
    except ImportError:
        for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
            sys.modules[f"torchvision{name}"] = MagicMock(__spec__=None, __version__="0.0")
    metrics = [f"metric_{name}" for name in ("fid", "kid", "isc", "prc")]
    names = ["feature_extractor_inceptionv3", *metrics]
    found = {name: importlib.import_module(f"torch_fidelity.{name}") for name in names}
    return torch, types.SimpleNamespace(**found)


def extractor(torch, fidelity, folder):
    """Returns torch-fidelity's network with the random weights."""
    made = fidelity.feature_extractor_inceptionv3
    # The names and shapes are the network's own, so that ours are checked against them.
    torch_load = torch.load
    blank = {}
    network = made.FeatureExtractorInceptionV3
    original = network.load_state_dict
    network.load_state_dict = lambda self, state: blank.update(self.state_dict())
    torch.load = lambda *args, **kwargs: {}
    try:
        network("inception", list(LAYERS), feature_extractor_weights_path="none")
    finally:
        torch.load, network.load_state_dict = torch_load, original
    shapes = {k: tuple(v.shape) for k, v in blank.items() if "num_batches" not in k}
    state = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
    state |= {k: v for k, v in blank.items() if "num_batches" in k}
    path = Path(folder, "weights.pth")
    torch.save(state, path)
    return network("inception", list(LAYERS), feature_extractor_weights_path=str(path)), shapes


def taps(torch, network, name):
    """Returns {layer: float32 [images, features]} of a set."""
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda m, given, out: seen.append(out))
    rows = []
    with torch.no_grad():
        for one in images(name):
            batch = torch.from_numpy(one.transpose(2, 0, 1)[None].copy())
            rows.append([x.numpy() for x in network(batch)])
    hook.remove()
    found = {k: np.concatenate(v) for k, v in zip(LAYERS, zip(*rows, strict=True), strict=True)}
    spatial = torch.cat(seen)[:, :7].permute(0, 2, 3, 1).reshape(len(rows), -1)
    return {**found, SPATIAL: spatial.numpy()}


def numbers(torch, fidelity, found):
    """Returns the metrics of random features, and of the taps of the two sets."""

    def fid(a, b):
        stats = [
            fidelity.metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)
        ]
        (value,) = fidelity.metric_fid.fid_statistics_to_metric(*stats, False).values()
        return value

    def kid(a, b, **given):
        settings = {**given, "rng_seed": 2020, "verbose": False}
        run = fidelity.metric_kid.kid_features_to_metric
        return list(run(torch.from_numpy(a), torch.from_numpy(b), **settings).values())

    def prc(a, b):
        run = fidelity.metric_prc.prc_features_to_metric
        found = run(torch.from_numpy(a), torch.from_numpy(b), prc_neighborhood=3, verbose=False)
        return [found["precision"], found["recall"]]

    def isc(logits, **given):
        run = fidelity.metric_isc.isc_features_to_metric
        return list(run(torch.from_numpy(logits), **given).values())

    result: dict[str, Any] = {"distances": {}, "scores": {}, "sets": {}}
    for name in DISTANCES:
        a, b = pairs(name)
        result["distances"][name] = {"fid": fid(a, b), "kid": kid(a, b, **KID), "prc": prc(a, b)}
    for name, (rows, dims) in SCORES.items():
        logits = 3 * features(3, rows, dims)
        result["scores"][name] = {
            "shuffled": isc(logits),
            "ordered": isc(logits, shuffle=False),
        }
    a, b = found["a"], found["b"]
    size = {"kid_subsets": 5, "kid_subset_size": 3}
    result["sets"] = {
        "fid": {layer: fid(a[layer], b[layer]) for layer in ("192", "768")},
        "kid": kid(a["2048"], b["2048"], **size),
        "isc": isc(a["logits_unbiased"], splits=2),
    }
    return result


def main(folder):
    torch, fidelity = libraries()
    network, shapes = extractor(torch, fidelity, folder)
    found = {name: taps(torch, network, name) for name in SETS}
    meta = {
        "torch": torch.__version__,
        "torch_fidelity": importlib.import_module("importlib.metadata").version("torch_fidelity"),
        "shapes": shapes,
        **numbers(torch, fidelity, found),
    }
    arrays = {f"{name}/{layer}": x for name, t in found.items() for layer, x in t.items()}
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(PACK, meta_json=text, **arrays)
    print(PACK, PACK.stat().st_size, "bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
