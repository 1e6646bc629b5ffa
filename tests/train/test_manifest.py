from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import pytest

from bigr_jax.train import manifest
from bigr_jax.train.manifest import Damaged, Leaf

LEAVES = {"params/kernel": Leaf((2, 3), "float32"), "step": Leaf((), "int32")}


@pytest.fixture
def step(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "data").write_bytes(bytes(range(256)))
    (tmp_path / "state" / "empty").write_bytes(b"")
    (tmp_path / "commit_success.txt").write_text("orbax's own")
    manifest.write(tmp_path, LEAVES)
    return tmp_path


def test_round_trip(step):
    found = manifest.verify(step)
    assert found.leaves == LEAVES
    assert set(found.files) == {"state/d/data", "state/empty"}
    assert found.files["state/empty"] == (
        0,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )
    assert [p.name for p in step.glob("manifest*")] == ["manifest.json"]


def test_writing_again_replaces_it(step):
    (step / "state" / "d" / "data").write_bytes(b"new")
    manifest.write(step, {})
    assert manifest.verify(step).leaves == {}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("state/d/data", bytes(range(255)), "state/d/data has 255 bytes, 256 were saved"),
        ("state/d/data", bytes(256), "state/d/data does not hold the bytes"),
        ("state/d/data", None, "state/d/data is missing"),
        ("state/empty", b"x", "state/empty has 1 bytes, 0 were saved"),
        ("manifest.json", None, "manifest.json is missing: the save was not finished"),
        ("manifest.json", b"", "manifest.json cannot be read"),
        ("manifest.json", b"[]", "manifest.json cannot be read"),
        ("manifest.json", b'{"content":{"files":3}}', "manifest.json cannot be read"),
        ("manifest.json", b"\xff\xfe", "manifest.json cannot be read"),
    ],
)
def test_damage_is_named(step, name, content, message):
    path = step / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(Damaged, match=message):
        manifest.verify(step)


def test_every_single_bit_of_the_manifest_counts(step):
    path = step / "manifest.json"
    good = path.read_bytes()
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1 << (index % 8)
        path.write_bytes(bytes(bad))
        with pytest.raises(Damaged):
            manifest.read(step)


def test_an_edited_manifest_with_valid_json_is_refused(step):
    path = step / "manifest.json"
    record = json.loads(path.read_text())
    record["content"]["leaves"]["step"] = [[], "int64"]
    path.write_text(json.dumps(record))
    with pytest.raises(Damaged, match="does not hold"):
        manifest.read(step)


@pytest.mark.parametrize("size", [64, 65, 128, 130, 200])
def test_long_files_are_hashed_in_pieces(step, monkeypatch, size):
    monkeypatch.setattr(manifest, "PIECE", 64)
    monkeypatch.setattr(manifest, "_BLOCK", 7)
    path = step / "state" / "long"
    path.write_bytes(bytes(i % 251 for i in range(size)))
    manifest.write(step, LEAVES, 12)
    pieces = [path.read_bytes()[i : i + 64] for i in range(0, size, 64)]
    digests = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert manifest.verify(step, 12).files["state/long"] == (size, " ".join(digests))
    good = path.read_bytes()
    for index in range(0, size, 13):
        path.write_bytes(good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :])
        with pytest.raises(Damaged, match="state/long does not hold"):
            manifest.verify(step)


def test_what_older_versions_wrote_is_read(step, monkeypatch):
    data = step / "state" / "d" / "data"
    files = {"state/d/data": [256, hashlib.sha256(data.read_bytes()).hexdigest()]}
    content = json.dumps({"files": files, "leaves": {}}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()
    (step / "manifest.json").write_text(f'{{"content":{content},"sha256":"{digest}"}}\n')
    monkeypatch.setattr(manifest, "PIECE", 64)
    assert manifest.verify(step, 30).step is None
    data.write_bytes(bytes(256))
    with pytest.raises(Damaged, match="state/d/data does not hold"):
        manifest.verify(step, 30)


def test_a_step_of_another_number_is_refused(step):
    manifest.write(step, LEAVES, 30)
    assert manifest.verify(step, 30).step == 30
    with pytest.raises(Damaged, match="it was saved as step 30"):
        manifest.verify(step, 40)


def test_too_few_hashes_are_damage(step, monkeypatch):
    monkeypatch.setattr(manifest, "PIECE", 64)
    monkeypatch.setattr(manifest, "_pieces", lambda size: [(0, 64), (64, size)])
    manifest.write(step, LEAVES)
    monkeypatch.undo()
    with pytest.raises(Damaged, match=r"has 2 hashes for the 1 pieces of state/d/data"):
        manifest.verify(step)


def test_leaves_of_a_tree():
    tree = {"a": [jnp.zeros((2, 1), jnp.bfloat16), None], "b": jax.ShapeDtypeStruct((), jnp.int32)}
    assert manifest.leaves(tree) == {"a/0": Leaf((2, 1), "bfloat16"), "b": Leaf((), "int32")}


def test_differences_name_path_saved_and_wanted():
    saved = {"a": Leaf((2, 3), "float32"), "b": Leaf((), "int32"), "c": Leaf((1,), "int8")}
    wanted = {"a": Leaf((2, 4), "float32"), "b": Leaf((), "float32"), "d": Leaf((), "int32")}
    assert manifest.differences(saved, wanted) == (
        "a was saved as float32[2, 3], wanted float32[2, 4]; b was saved as int32[], wanted "
        "float32[]; c was saved as int8[1] and is not wanted; d is not in the checkpoint, wanted "
        "int32[]"
    )
    assert manifest.differences(saved, saved) == ""
    many = {f"p{i}": Leaf((), "int32") for i in range(12)}
    assert manifest.differences({}, many).endswith("; and 7 more")
