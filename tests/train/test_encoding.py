"""Codes of a run's images: which bits they are, going on after a kill, and training on them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.data import open_source, train_batches
from bigr_jax.data.code_files import read_description
from bigr_jax.data.records import write_arrayrecord
from bigr_jax.errors import UserError
from bigr_jax.train import encoding
from bigr_jax.train.coder import check_codes, fingerprint, tokenizer_of
from bigr_jax.train.encoding import encode
from bigr_jax.train.run import Run
from bigr_jax.train.state import zeros_like_spec

pytest.importorskip("array_record", reason="array_record is not installed")

TRAIN, TEST, TOKENS, BITS = 23, 5, 16, 8
SETTINGS = {
    "tokenizer_loss.adversarial": "false",
    "train.tokenizer.eval_batch_size": "8",
    "model.depth": "1",
    "model.dropout": "0.1",
    "data.augment": "",
}
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (TRAIN + TEST, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(TRAIN + TEST) % 10


def configured(folder: Path, **changes: str) -> Any:
    source = {"data.source": f"arrayrecord:{folder}/*", "data.channels": "1"}
    return configs.load("bigr:smoke", {**SETTINGS, **source, **changes})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_arrayrecord(folder / "train", IMAGES[:TRAIN], LABELS[:TRAIN], num_classes=10)
    write_arrayrecord(folder / "test", IMAGES[TRAIN:], LABELS[TRAIN:], num_classes=10)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose tokenizer was given to it: its bits are about as likely 0 as 1."""
    made = Run(configured(images), str(tmp_path_factory.mktemp("run")))
    made.write_description()
    made.adopt("tokenizer", drawn_variables(made, "tokenizer"))
    return made


@pytest.fixture(scope="module")
def few_per_file() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "EXAMPLES_PER_FILE", 9)
        yield


@pytest.fixture(scope="module")
def encoded(run: Run, few_per_file: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two draws of every image and of its mirror image, in three files."""
    folder = tmp_path_factory.mktemp("encoded") / "codes"
    encode(run, str(folder), draws=2, flip=True, seed=3)
    return folder


def drawn_variables(run: Run, stage: str) -> Any:
    """Returns random variables; nothing here depends on how an initialiser draws."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: random.normal(0, 0.3, leaf.shape).astype(leaf.dtype),
        run.plan(stage).abstract.variables,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def source_of(folder: Path, split: str = "train", **more: int) -> Any:
    return open_source({"source": f"codes:{folder}", "size": 8, "channels": 1, **more}, split)


def bits_of(folder: Path, split: str = "train") -> np.ndarray:
    """Returns all codes, [copies, examples, N, K], in the order of the images here."""
    source = source_of(folder, split)
    found = source.gather(np.arange(len(source) * source.copies))["codes"]
    bits = np.unpackbits(found, axis=-1, count=TOKENS * BITS)
    return bits.reshape(source.copies, len(source), TOKENS, BITS)


@pytest.fixture(scope="module")
def probabilities(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """(images) -> the probability of a 1, [n, 4, 4, K], of the tokenizer called by itself."""
    net = tokenizer_of(run.methods, "bigr")
    own = {"params": run.variables("tokenizer")["params"]["autoencoder"]}
    logits = jax.jit(lambda x: net.apply(own, x, method="encode"))

    def of(images: np.ndarray) -> np.ndarray:
        found = np.asarray(logits(images.astype(np.float32) / 255), np.float64)
        return 1 / (1 + np.exp(-found))

    return of


def test_draws_follow_the_seed_the_example_and_the_copy(
    encoded: Path, probabilities: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = bits_of(encoded)
    assert found.shape == (4, TRAIN, TOKENS, BITS)
    # All in one batch, whereas it was encoded eight at a time.
    sides = [probabilities(IMAGES[:TRAIN]), probabilities(IMAGES[:TRAIN, :, ::-1])]
    root = jax.random.key(3)
    for index in range(TRAIN):
        for copy in range(4):
            key = jax.random.fold_in(jax.random.fold_in(root, index), copy)
            uniforms = np.asarray(jax.random.uniform(key, (4, 4, BITS)), np.float64)
            expected = sides[copy // 2][index] > uniforms
            np.testing.assert_array_equal(found[copy, index], expected.reshape(TOKENS, BITS))
    assert 0.2 < found.mean() < 0.8
    for one in range(4):
        for other in range(one):
            assert (found[one] != found[other]).mean() > 0.05


def test_the_test_split_and_no_draws_are_rounded(
    run: Run, encoded: Path, probabilities: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    expected = probabilities(IMAGES).reshape(-1, TOKENS, BITS) > 0.5
    np.testing.assert_array_equal(bits_of(encoded, "test"), expected[None, TRAIN:])
    encode(run, str(tmp_path / "codes"), draws=0)
    np.testing.assert_array_equal(bits_of(tmp_path / "codes"), expected[None, :TRAIN])
    np.testing.assert_array_equal(bits_of(tmp_path / "codes", "test"), expected[None, TRAIN:])


def test_what_was_encoded_is_described(run: Run, encoded: Path) -> None:
    codes = read_description(encoded)
    assert codes is not None
    assert (codes.tokens, codes.bits, codes.width) == (TOKENS, BITS, 16)
    assert (codes.draws, codes.flip, codes.seed) == (2, True, 3)
    assert codes.splits == {"train": (TRAIN, 4, 3), "test": (TEST, 1, 1)}
    assert codes.info == run.sources["train"].info
    source = source_of(encoded)
    np.testing.assert_array_equal(source.gather(np.arange(TRAIN))["label"], LABELS[:TRAIN])


def test_files_do_not_depend_on_batches_hosts_or_kills(
    run: Run, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    how: dict[str, Any] = dict(draws=2, flip=True, seed=3)
    # Killed in the third file, then gone on with in the same batches.
    stopped, gather = tmp_path / "stopped", type(run.sources["train"]).gather

    def kill(source: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        if len(source) == TRAIN and max(indices) >= 16:
            raise KeyboardInterrupt
        return gather(source, indices)

    with monkeypatch.context() as patch:
        patch.setattr(type(run.sources["train"]), "gather", kill)
        with pytest.raises(KeyboardInterrupt):
            encode(run, str(stopped), **how)
    kept = {path: path.stat().st_mtime_ns for path in stopped.glob("*.arrayrecord")}
    assert len(kept) == 2
    with pytest.raises(UserError, match=r"lacks 1 of 3 files, train-00002-of-00003.arrayrecord"):
        source_of(stopped)
    capsys.readouterr()
    encode(run, str(stopped), **how)
    assert contents(stopped) == contents(encoded)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    said = capsys.readouterr().err
    assert "train: file 3 of 3, " in said and "file 2" not in said
    assert "train: 23 images, 7 encoded in " in said
    encode(run, str(stopped), **how)
    said = capsys.readouterr().err
    assert "train: 23 images, 0 encoded in " in said
    assert "test: 5 images, 0 encoded in " in said
    # Two hosts, one after the other.
    shared = tmp_path / "shared"
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "on_host", jax.device_get)
        patch.setattr(encoding.multihost_utils, "sync_global_devices", lambda name: None)
        run.variables("tokenizer")
        patch.setattr(jax, "process_count", lambda: 2)
        for host in (1, 0):
            patch.setattr(jax, "process_index", lambda host=host: host)
            encode(run, str(shared), **how)
            made = {path.name for path in shared.glob("*.arrayrecord")}
            if host == 1:
                assert made == {"train-00001-of-00003.arrayrecord"}
    assert contents(shared) == contents(encoded)


def test_a_split_is_added_and_another_setting_is_refused(
    run: Run, encoded: Path, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "codes"
    shutil.copytree(encoded, folder, ignore=shutil.ignore_patterns("train-*"))
    description = (folder / "codes.json").read_text()
    with pytest.raises(
        UserError, match=r"codes\.json is of other settings: draws was 2, now 1\. G"
    ):
        encode(run, str(folder), flip=True, seed=3)
    with pytest.raises(UserError, match=r"flip was True, now False; seed was 3, now 0\. Give"):
        encode(run, str(folder), ["test"], draws=2)
    write_arrayrecord(tmp_path / "train", IMAGES[:4], LABELS[:4], num_classes=10)
    write_arrayrecord(tmp_path / "test", IMAGES[:TEST], LABELS[:TEST], num_classes=10)
    how: dict[str, Any] = dict(draws=2, flip=True, seed=3)
    with pytest.raises(UserError, match=r"examples of train was 23, now 4\. Give"):
        other = {"data.source": f"arrayrecord:{tmp_path}/{{split}}"}
        encode(run, str(folder), **how, overrides=other)
    assert (folder / "codes.json").read_text() == description
    only = tmp_path / "only"
    encode(run, str(only), ["test"], **how)
    with pytest.raises(UserError, match="holds the split test; add the other with: bigr encode"):
        source_of(only)
    assert contents(only).keys() == {"codes.json", "test-00000-of-00001.arrayrecord"}
    code = read_description(encode(run, str(only), ["train"], **how) and only)
    assert code is not None and set(code.splits) == {"train", "test"}
    assert {name: data for name, data in contents(only).items() if name != "codes.json"} == {
        name: data for name, data in contents(encoded).items() if name != "codes.json"
    }


def test_mistakes_are_named(run: Run, tiny: Callable[..., Any], tmp_path: Path) -> None:
    out = str(tmp_path / "codes")
    with pytest.raises(UserError, match="--split='valid' is not known; legal: train, test"):
        encode(run, out, ["valid"])
    with pytest.raises(UserError, match=r"--config='data\.size' is not known.*; legal: data\.sour"):
        encode(run, out, overrides={"data.size": "16"})
    with pytest.raises(
        UserError, match=r"data.source='codes:.*' gives codes, label; codes are made"
    ):
        encode(run, str(tmp_path / "first"), draws=0)
        encode(run, out, overrides={"data.source": f"codes:{tmp_path}/first"})
    with pytest.raises(UserError, match="has no stage 'tokenizer' that makes binary codes; its st"):
        encode(Run(tiny(), str(tmp_path)), out)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out=.*/file/codes cannot be made: "):
        encode(run, f"{tmp_path}/file/codes")
    assert not Path(out).exists()


def test_codes_of_another_tokenizer_are_refused(
    run: Run, encoded: Path, images: Path, tmp_path: Path
) -> None:
    source, given = source_of(encoded), {"tokenizer": run.variables("tokenizer")}
    check_codes(source, run.methods, {"tokenizer": run.variables("tokenizer")})
    check_codes(run.sources["train"], run.methods, given)
    other = jax.tree.map(lambda leaf: leaf + 1, run.variables("tokenizer"))
    with pytest.raises(UserError, match=r"holds codes of another tokenizer, .*; the one given is "):
        check_codes(source, run.methods, {"tokenizer": other})
    wide = Run(configured(images, **{"tokenizer.bits": "4"}), str(tmp_path))
    with pytest.raises(
        UserError, match=r"holds codes of 16 tokens of 8 bits; .* 16 tokens of 4 bi"
    ):
        check_codes(source, wide.methods, {"tokenizer": other})


def test_a_fingerprint_tells_names_shapes_types_and_values() -> None:
    tree: dict[str, Any] = {"b": {"x": np.arange(6, dtype=np.float32)}, "a": np.ones(2, np.float32)}
    same = {"a": jnp.ones(2), "b": {"x": jnp.arange(6, dtype=jnp.float32)}}
    assert fingerprint(tree) == fingerprint(same)
    others: list[Any] = [
        {"b": {"y": tree["b"]["x"]}, "a": tree["a"]},
        {"b": {"x": tree["b"]["x"].reshape(2, 3)}, "a": tree["a"]},
        {"b": {"x": tree["b"]["x"].view(np.int32)}, "a": tree["a"]},
        {"b": {"x": tree["b"]["x"] + 1e-6}, "a": tree["a"]},
    ]
    assert len({fingerprint(one) for one in [tree, *others]}) == 5


def test_training_on_codes_is_training_through_the_tokenizer(
    run: Run, tmp_path: Path, few_per_file: None
) -> None:
    # Logits so large that a draw is certain, on either path.
    certain = jax.device_get(run.variables("tokenizer"))
    projection = certain["params"]["autoencoder"]["quantizer"]["proj"]
    projection.update({name: 1e6 * value for name, value in projection.items()})
    sure = Run(run.config, str(tmp_path / "run"))
    sure.adopt("tokenizer", certain)
    encode(sure, str(tmp_path / "codes"))
    method, given = sure.methods["generator"], {"tokenizer": certain}
    sources = {"image": sure.sources["train"], "codes": source_of(tmp_path / "codes")}
    for source in sources.values():
        check_codes(source, sure.methods, given)
    spec = zeros_like_spec(sure.batch_spec("generator"))
    start = jax.jit(method.init)(jax.random.key(0), spec, given)
    start = jax.tree.map(lambda leaf: leaf.unbox(), start, is_leaf=lambda x: hasattr(x, "unbox"))

    def trained(source: Any, column: str) -> tuple[list[float], Any]:
        # The bits of two programs: the level of the other tests rounds them in two ways.
        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
        def step(params: Any, key: Any, batch: Any) -> tuple[Any, Any]:
            (value, _), grads = jax.value_and_grad(
                lambda p: method.loss({"params": p}, key, batch, given), has_aux=True
            )(params)
            return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

        params, losses = start["params"], []
        batches = train_batches(source, 8, seed=0)
        for number in range(4):
            batch = next(batches)
            assert column in batch
            key = jax.random.fold_in(jax.random.key(5), number)
            value, params = step(params, key, batch)
            losses.append(float(value))
        batches.close()
        return losses, params

    pixels, learnt_pixels = trained(sources["image"], "image")
    codes, learnt_codes = trained(sources["codes"], "codes")
    assert codes == pixels and len(set(pixels)) == 4
    jax.tree.map(np.testing.assert_array_equal, learnt_codes, learnt_pixels)
