"""Small files appear whole or not at all."""

import pytest

from bigr_jax import files


def test_json_round_trip_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"x": [1, 2.5, None]})
    assert files.read_json(path) == {"x": [1, 2.5, None]}
    assert files.read_json(tmp_path / "none.json") is None


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    assert files.read_json(path) == 1


def test_what_is_interrupted_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        (tmp_path / "a.json.part").write_text("half")
        assert part == f"{path}.part"
        raise KeyboardInterrupt
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    assert files.read_json(path) == 1
