"""A classifier from labels, on optdigits or with `data=fashion` on Fashion-MNIST.

Paper: none; cross-entropy.
Run:   python -m distill_jax.train --config experiments/classifier/supervised.py[:data=fashion]
  --workdir runs/classifier
       python -m distill_jax.export --workdir runs/classifier --out my_classifier
         --tree ema.constant_0.99 --dtype float32
Takes: see distill_jax/assets/digits_classifier/README.md.
"""

from experiments.classifier import common


def get_config(arg=None):
  config = common.base(arg, dict(name="classifier.supervised"))
  return common.smoke(config) if config.arg.smoke else config
