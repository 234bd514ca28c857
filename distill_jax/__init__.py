"""Distillation research in JAX. Begin with README.md; `distill_jax.train` runs an experiment."""

__version__ = "0.1.0"
