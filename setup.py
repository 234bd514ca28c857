"""Dependencies with a floor and a tested ceiling, and extras for what only some need."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "distill_jax/__init__.py").read_text())[1]

BASE = [
  "jax>=0.10.2,<0.11",
  "flax>=0.12.8,<0.13",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.8,<0.13",
  "grain>=0.2.18,<0.3",
  "array_record>=0.8.1,<0.9",
  "ml-collections>=1.1,<2",
  "numpy>=2.0,<3",
  "safetensors>=0.5,<1",
  "tokenizers>=0.21,<1",
  "rich>=13,<16",
  "matplotlib>=3.9,<4",
]
DATA = [
  "tensorflow-datasets>=4.9.9,<5",
  "importlib_resources>=6",  # tfds 4.9.10 uses it undeclared
  "scikit-learn>=1.6,<2",  # optdigits are in it
]
PRETRAINED = ["gguf>=0.17,<0.20", "sentencepiece>=0.2,<0.3", "jinja2>=3.1,<4", "qwix>=0.1.8,<0.2"]
TPU = ["jax[tpu]>=0.10.2,<0.11"]  # brings the libtpu that belongs to this jax
NOTEBOOKS = ["nbclient>=0.10,<1", "nbformat>=5.10,<6", "ipykernel>=6.29,<8"]
LM_EVAL = ["lm_eval>=0.4.13,<0.5"]
TEST = ["pytest>=8.2,<10", "pytest-xdist>=3.6,<4", *DATA, *NOTEBOOKS, *PRETRAINED, *LM_EVAL]

setup(
  name="distill_jax",
  version=VERSION,
  description="Distillation research in JAX: language models, datasets, diffusion",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["distill_jax", "distill_jax.*"]),
  package_data={"distill_jax": ["assets/*/*"]},
  install_requires=BASE,
  extras_require={
    "data": DATA,
    "pretrained": PRETRAINED,
    "lm_eval": LM_EVAL,
    "parity": [*PRETRAINED, "torch>=2.8,<3", "transformers>=5,<6", "pytorch-fid>=0.3,<0.4"],
    "tpu": TPU,
    "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
    "notebooks": NOTEBOOKS,
    "test": TEST,
    "dev": [*TEST, "ruff>=0.14,<1", "mypy>=1.18,<3", "pre-commit>=4,<5"],
  },
)
