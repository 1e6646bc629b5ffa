"""Encoding the images of a run once, by its tokenizer, so that what is trained on codes reads them.

Files are made one by one, each by one process; those that are there are kept, so that the same call
goes on where one was stopped. A drawn bit depends on the seed, the example and the copy alone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from bigr_jax import config as configs
from bigr_jax import progress
from bigr_jax.api import Array
from bigr_jax.data import Source, code_files, open_source
from bigr_jax.data.code_files import NAME, Codes, Split
from bigr_jax.data.pipeline import HostBatch, ahead
from bigr_jax.errors import UserError, one_of
from bigr_jax.train import sharding
from bigr_jax.train.coder import STAGE, coder, fingerprint, on_host, tokenizer_of
from bigr_jax.train.loop import scope

if TYPE_CHECKING:
    from bigr_jax.train.run import Run

EXAMPLES_PER_FILE = 1 << 14
# Of `Codes`, what two calls that fill one folder have in common.
_SETTINGS = ("draws", "flip", "seed", "tokens", "bits", "tokenizer")
_DATA = ("num_classes", "class_names", "image_shape")


def encode(
    run: Run,
    folder: str,
    splits: Sequence[str] = ("train", "test"),
    draws: int = 1,
    flip: bool = False,
    seed: int = 0,
    overrides: Mapping[str, str] | None = None,
) -> Codes:
    """Writes the codes of a run's images, by its finished tokenizer, and returns what is there.

    draws      of every training image; 0: its rounded bits. The test split, which only ever
               measures, is rounded and not mirrored whatever is asked for
    flip       adds those of the mirrored training images
    overrides  {"data.source": "folder:/mine"}: settings of the config's `data` section

    Raises UserError where the run has no finished tokenizer, and where the folder was filled with
    other settings.
    """
    net = tokenizer_of(run.methods, run.config.slug)
    for name in splits or ("",):
        if name not in ("train", "test"):
            raise one_of("--split", name, ("train", "test"))
    params = on_host(run.variables(STAGE)["params"]["autoencoder"])
    section = _data_section(run, overrides or {})
    sources = {name: _images(section, name) for name in splits}
    copies = {"train": max(draws, 1) * (1 + flip), "test": 1}
    wanted = Codes(
        info=sources[splits[0]].info,
        tokens=net.grid**2,
        bits=net.bits,
        tokenizer=fingerprint(params),
        draws=draws,
        flip=flip,
        seed=seed,
        splits={
            name: Split(len(source), copies[name], -(-len(source) // EXAMPLES_PER_FILE))
            for name, source in sources.items()
        },
    )
    codes = _begun(Path(folder), wanted)
    size = run.config.train[STAGE].eval_batch_size
    for name, source in sources.items():
        how = (draws, flip) if name == "train" else (0, False)
        encoder = _Encoder(coder(net, *how, seed), params, size)
        _write_split(encoder, source, Path(folder), name, codes)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("encoded")
    return codes


def _data_section(run: Run, overrides: Mapping[str, str]) -> Any:
    section = configs.override(run.config, overrides).data
    allowed = ("data.source", "data.data_dir", "data.ram_limit")
    for key in overrides:
        if key not in allowed:
            raise one_of("--config", key, allowed)
    return section


def _images(section: Any, split: str) -> Source:
    source = open_source(section, split)
    columns = source.gather(np.arange(1))
    if columns.keys() != {"image", "label"}:
        raise UserError(
            f"data.source={section.source!r} gives {', '.join(columns)}; codes are made of images "
            "and keep labels"
        )
    return source


def _begun(folder: Path, wanted: Codes) -> Codes:
    """Writes codes.json, with the splits that it already names, and returns what it says."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be made: {error.strerror}") from None
    found = code_files.read_description(folder)
    if found is not None:
        _refuse_other(folder, found, wanted)
        wanted = found._replace(splits={**found.splits, **wanted.splits})
    if jax.process_index() == 0:
        code_files.write_description(folder, wanted)
    return wanted


def _refuse_other(folder: Path, found: Codes, wanted: Codes) -> None:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in _SETTINGS]
    pairs += [(n, getattr(found.info, n), getattr(wanted.info, n)) for n in _DATA]
    both = found.splits.keys() & wanted.splits.keys()
    pairs += [
        (f"examples of {name}", found.splits[name].examples, wanted.splits[name].examples)
        for name in sorted(both)
    ]
    changed = [f"{name} was {old}, now {new}" for name, old, new in pairs if old != new]
    if changed:
        raise UserError(
            f"{folder / NAME} is of other settings: {'; '.join(changed)}. Give another --out, or "
            "the same settings to go on"
        )


class _Encoder:
    """A compiled coder on all devices of this process, `size` images at a time or a few more."""

    def __init__(self, coded: Callable[..., Array], params: Any, size: int) -> None:
        devices = jax.local_devices()
        self.size = -(-size // len(devices)) * len(devices)
        self._mesh = sharding.make_mesh({"data": -1}, devices)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self._rows = sharding.batch_sharding(self._mesh)
        self._run = jax.jit(coded)

    def __call__(self, batch: HostBatch) -> Array:
        """Starts the work on a batch."""
        placed = jax.device_put((batch["image"], batch["index"]), self._rows)
        with scope(self._mesh):
            return self._run(self._params, *placed)


def _write_split(encoder: _Encoder, source: Source, folder: Path, name: str, codes: Codes) -> None:
    split, begun, done = codes.splits[name], time.perf_counter(), 0
    # Disabled where stderr is no terminal; a line for every file tells how it goes there.
    bar = tqdm(total=len(source), desc=f"encoding {name}", unit=" images", disable=None)
    what = f"{name}: compiling, and encoding {len(source)} images"
    with progress.slow(what) if bar.disable else contextlib.nullcontext():
        for shard in range(jax.process_index(), split.shards, jax.process_count()):
            path, rows = code_files.shard_path(folder, name, split, shard), split.rows(shard)
            if path.exists():
                bar.update(len(rows))
                continue
            code_files.write_shard(path, _coded(encoder, source, rows, bar), codes)
            done += len(rows)
            if bar.disable:
                rate = done / (time.perf_counter() - begun)
                _say(f"{name}: file {shard + 1} of {split.shards}, {rate:,.0f} images/s")
    bar.close()
    lost = getattr(source, "corrupt", 0)
    replaced = f", {lost} unreadable and replaced" if lost else ""
    seconds = time.perf_counter() - begun
    _say(f"{name}: {len(source)} images, {done} encoded in {seconds:.1f} s{replaced}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _coded(
    encoder: _Encoder, source: Source, rows: range, bar: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    def made(step: int) -> HostBatch:
        first = rows.start + step * encoder.size
        indices = np.minimum(np.arange(first, first + encoder.size), rows.stop - 1)
        return {**source.gather(indices), "index": indices.astype(np.int32)}

    def fetched(packed: Array, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        bar.update(count)
        return np.asarray(packed)[:count], labels[:count]

    before: tuple[Array, np.ndarray, int] | None = None
    for step, batch in enumerate(ahead(made, range(-(-len(rows) // encoder.size)))):
        count = min(encoder.size, len(rows) - step * encoder.size)
        now = encoder(batch), batch["label"], count
        # The device works on this batch while the one before is written.
        if before is not None:
            yield fetched(*before)
        before = now
    assert before is not None
    yield fetched(*before)
