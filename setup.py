"""Packaging: the library, with the folders experiments/ and configs/ as packages inside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "bigr_jax/__init__.py").read_text("utf-8"))[1]

setup(
    name="bigr_jax",
    version=VERSION,
    description="A JAX/Flax zoo of paper methods: one trainer, one short recipe per paper",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["bigr_jax", "bigr_jax.*"]),
        "bigr_jax.experiments",
        "bigr_jax.configs",
    ],
    package_dir={"bigr_jax.experiments": "experiments", "bigr_jax.configs": "configs"},
    package_data={"bigr_jax.cli": ["templates/*.txt"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tensorflow-datasets>=4.9.10",
        # tensorflow-datasets needs it on Python 3.11 and does not say so.
        "importlib_resources",
        "ml-collections>=1.1.0",
        "chex>=0.1.92",
        "grain>=0.2.18",
        "array_record>=0.8.6",
        "safetensors>=0.8.0",
        "tensorboardX>=2.6.5",
        "Pillow",
        "tqdm",
        "absl-py>=2.5",
        "mlxtend",
        "sentencepiece>=0.2",
        "scikit-learn",
        "matplotlib>=3.10",
        "numpy>=2",
        "scipy",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-tqdm",
            "nbmake>=1.5",
            "jupytext",
            "ipykernel",
            "setuptools>=77",
            "bigr_jax[docs]",
            # The TPU compiler, by jax's own choice of version: no TPU is needed.
            "jax[tpu]>=0.10.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "demo": ["gradio>=6.31,<7"],
        # Drives the demo's page in the chromium of the system.
        "browser": ["bigr_jax[demo]", "playwright>=1.65"],
        "docs": ["mkdocs-material>=9.8"],
    },
    entry_points={"console_scripts": ["bigr = bigr_jax.__main__:run"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
