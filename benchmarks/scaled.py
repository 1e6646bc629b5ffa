"""The models that are timed: those of a config, or narrowed to what two cores can run.

A model is narrowed by dividing its widths and keeping everything else: depth, tokens, bits, steps
and the size of a head. Nearly all of its work lies in products of two widths, so that every part
keeps its share of it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.config import build
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.tasks.code_generator import CodeGenerator

# What the data would tell.
CLASSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `given_config` reads."""
    parser.add_argument("--variant", default="small", help="of the config; default small")
    parser.add_argument(
        "--narrow", type=int, default=1, help="divides the widths of its models; default 1"
    )
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds --set, which `settings` reads."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, repeatable"
    )


def settings(given: argparse.Namespace) -> dict[str, str]:
    """Returns the settings of a command line, {"model.depth": "4"}."""
    return dict(text.partition("=")[::2] for text in given.set)


def given_config(given: argparse.Namespace) -> Any:
    """Returns the config that the command line asks for.

    Raises UserError for a setting that is none.
    """
    return scaled(given.variant, given.narrow, settings(given))


def scaled(variant: str, narrow: int = 1, settings: Mapping[str, str] | None = None) -> Any:
    """Returns a variant of BiGR's config with its widths divided by `narrow`, in float32.

    settings  {"model.depth": "4"}: changes after that
    """
    config = configs.copy(configs.load(f"bigr:{variant}"))
    config.data.channels = config.data.channels or 3
    config.data.num_classes = config.data.num_classes or CLASSES
    for section, keys in (
        ("model", ("width", "heads", "head_width")),
        ("tokenizer", ("filters", "embedding")),
    ):
        for key in keys:
            config[section][key] = max(1, config[section][key] // narrow)
        config[section].dtype = "float32"
    config.data.augment, config.model.dropout = "", 0.0
    return configs.override(config, settings or {})


def generator(config: Any) -> CodeGenerator:
    """Returns the experiment's generator of a config, without a referee."""
    data = config.data
    tokenizer = build(
        BinaryAutoencoder, config.tokenizer, image_size=data.size, channels=data.channels
    )
    experiment: Any = registry.run_file(registry.locate("experiments", "bigr"))
    made: CodeGenerator = experiment.generator(config, tokenizer, None)
    return made


def shapes(model: CodeGenerator) -> Any:
    """Returns the shapes of a generator's variables."""
    init = functools.partial(model.init, batch={"label": jnp.zeros(1, int)}, given={})
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def tokenizer_shapes(model: CodeGenerator) -> Any:
    """Returns the shapes of its tokenizer's variables, as the stage before gives them."""
    net = model.tokenizer
    image = jax.ShapeDtypeStruct((1, net.image_size, net.image_size, net.channels), jnp.float32)
    found: Any = nn.meta.unbox(jax.eval_shape(net.init, jax.random.key(0), image))
    return {"params": {"autoencoder": found["params"]}}


def noise(shapes: Any, scale: float = 0.05) -> Any:
    """Returns random variables of these shapes.

    Not those that training starts from, in which the last layer is zero: all tokens would be alike,
    and any form equal to any other. A norm's scale is around one.
    """
    rng = np.random.default_rng(0)

    def fill(path: Any, x: Any) -> jax.Array:
        values = scale * rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(values + 1.0 if path[-1].key == "scale" else values, x.dtype)

    return jax.tree.map_with_path(fill, shapes)
