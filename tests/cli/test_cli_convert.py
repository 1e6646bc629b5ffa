"""`bigr convert` on files of the published layouts, with values made here."""

import json
import struct

import numpy as np
import pytest

from bigr_jax.cli.main import main
from bigr_jax.interop import files, torch
from bigr_jax.models.encoder import Encoder, MaskedModel
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.train.run import opened

MIXING = {"head_dim": 64, "state": 64, "expand": 2, "conv": 7, "groups": 1}
HYDRA_BERT = MaskedModel(30522, 768, Encoder(23, "hydra", MIXING, norm_first=False), types=2)
# {published file: (stage, its networks, the config that it belongs to)}
PUBLISHED = {
    "bae_d24": ("tokenizer", "B-AE-d24", ["bigr:paper"]),
    "bae_d32": ("tokenizer", "B-AE-d32", ["bigr:paper_xxl"]),
    "bae_d32_512": ("tokenizer", "B-AE-d32-512", ["bigr:paper_l512"]),
    "bigr_L_d24": ("generator", "BiGR-L-d24", ["bigr:paper"]),
    "bigr_XL_d24": ("generator", "BiGR-XL-d24", ["bigr:paper_xl"]),
    "bigr_XXL_d24": ("generator", "BiGR-XXL-d24", ["bigr:paper_xxl", "--config.tokenizer.bits=24"]),
    "bigr_XXL_d32": ("generator", "BiGR-XXL-d32", ["bigr:paper_xxl"]),
    "bigr_L_d32_512": ("generator", "BiGR-L-512-d32", ["bigr:paper_l512"]),
    # Of tokens that are not on this machine, whose shapes the config tells.
    "hydra_bert": ("encoder", HYDRA_BERT, ["hydra:paper"]),
}


def empty_file(path, shapes):
    """Writes a safetensors file of float32 zeros whose values take no room on the disk."""
    head, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def layout(stage, name):
    """{tensor: shape} as it is published: the tokenizer lies beside its discriminator."""
    shapes = torch.shapes(name)
    if stage != "tokenizer":
        return shapes
    beside = torch.shapes(PatchDiscriminator(64, 3, 3))
    return {
        **{f"ae.{key}": shape for key, shape in shapes.items()},
        **{f"disc.{key}": shape for key, shape in beside.items()},
        "perceptual.lin0.model.1.weight": (1, 64, 1, 1),
    }


def convert(*words):
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("file", PUBLISHED)
def test_a_dry_run_of_every_published_layout(file, tmp_path, capsys):
    stage, name, (config, *changes) = PUBLISHED[file]
    path = empty_file(tmp_path / f"{file}.safetensors", layout(stage, name))
    command = [f"{stage}={path}", f"--config={config}", *changes, f"--workdir={tmp_path / 'run'}"]
    assert convert(*command, "--dry_run") == 0
    assert capsys.readouterr().out == f"every tensor fits: {stage}\n"
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_are_refused_with_every_name(tmp_path, capsys):
    shapes = layout("generator", "BiGR-L-d24")
    shapes["norm.wieght"] = shapes.pop("norm.weight")
    shapes["tok_embeddings.bias"] = (1025,)
    path = empty_file(tmp_path / "a.safetensors", shapes)
    given = [f"generator={path}", f"--workdir={tmp_path / 'run'}"]
    assert convert(*given, "--config=bigr:paper") == 2
    said = capsys.readouterr().err
    assert "1 missing: norm.weight; 1 unknown: norm.wieght (did you mean 'norm.weight'?)" in said
    assert "tok_embeddings.bias is (1025,), wanted (1024,)" in said
    assert convert(*given, "--config=bigr:paper_xl") == 2
    assert "wanted (1280,)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_weights_come_back_bit_for_bit(smoke, tmp_path, suffix):
    one, run = tmp_path / "one", tmp_path / "run"
    paths = [f"{stage}={one / stage}.{suffix}" for stage in ("tokenizer", "generator")]
    assert convert(*paths, f"--workdir={smoke}", "--export") == 0
    tensors = files.read(one / f"tokenizer.{suffix}", "ae")
    assert "encoder.blocks.0.weight" in tensors
    # What nothing reads is kept too.
    rng, changed = np.random.default_rng(0), {}
    for stage in ("tokenizer", "generator"):
        parts = ("ae", "disc") if stage == "tokenizer" else ("",)
        for part in parts:
            prefix = f"{part}." * bool(part)
            for name, value in files.read(one / f"{stage}.{suffix}", part).items():
                unread = value.dtype == np.float32 and not value.any()
                noise = rng.standard_normal(value.shape).astype(value.dtype)
                changed.setdefault(stage, {})[prefix + name] = noise if unread else value
        files.write(one / f"{stage}.{suffix}", changed[stage])
    assert convert(*paths, "--config=bigr:smoke", f"--workdir={run}") == 0
    back = tmp_path / "back"
    paths = [f"{stage}={back / stage}.{suffix}" for stage in ("tokenizer", "generator")]
    assert convert(*paths, f"--workdir={run}", "--export") == 0
    for stage in ("tokenizer", "generator"):
        for part in ("ae", "disc") if stage == "tokenizer" else ("",):
            before, after = (files.read(where / f"{stage}.{suffix}", part) for where in (one, back))
            assert before.keys() == after.keys()
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_a_tokenizer_alone_is_a_base_to_train_on(smoke, tmp_path):
    path, base = tmp_path / "ae.npz", tmp_path / "base"
    assert convert(f"tokenizer={path}", f"--workdir={smoke}", "--export") == 0
    # As some files are: the network alone, without first names and without its discriminator.
    files.write(path, files.read(path, "ae"))
    assert convert(f"tokenizer={path}", "--config=bigr:smoke", f"--workdir={base}") == 0
    trained, given = opened(str(smoke)), opened(str(base))
    assert given.is_finished("tokenizer") and not given.is_finished("generator")
    ours, theirs = (run.variables("tokenizer")["params"]["autoencoder"] for run in (trained, given))
    kernels = (x["encoder"]["conv_in"]["kernel"] for x in (ours, theirs))
    np.testing.assert_array_equal(*map(np.asarray, kernels))


def test_mistakes(tmp_path, smoke, capsys):
    where = f"--workdir={tmp_path / 'run'}"
    for words, text in (
        ([where], "no file is named"),
        (["generator", where], "'generator' is not STAGE=FILE"),
        (["generator=a.npz"], "--workdir is missing"),
        (["generator=a.npz", "generator=b.npz", where], "a stage is named twice"),
        (["generator=a.npz", where], "is no work directory"),
        (["generator=a.npz", where, "--config=bigr:smoke"], "'a.npz' does not exist"),
        (["genrator=a.npz", where, "--config=bigr:smoke"], "did you mean 'generator'"),
        (["referee=a.npz", where, "--config=bigr:smoke"], "'referee' has no published layout"),
        (["generator=a.npz", where, "--export", "--dry_run"], "--export takes neither"),
        (["generator=a.pt", where, "--config=bigr:smoke"], "is a PyTorch pickle"),
    ):
        assert convert(*words) == 2
        assert text in capsys.readouterr().err
    out = tmp_path / "g.npz"
    assert convert(f"generator={out}", f"--workdir={smoke}", "--export") == 0
    assert convert(f"generator={out}", f"--workdir={smoke}") == 2
    assert "is trained; give another --workdir" in capsys.readouterr().err
