"""Several one-step students, each for a part of the classes, trained by distribution matching.

Student i makes the labels y with floor(y k / n) = i, of k students and n classes. For sampling and
for training they are one network, models/multi.py, whose copies take their own examples, and the
method is DMD2 on it: one fake score, and one discriminator if it has a weight, for all of them. All
copies begin as the start weights. The paper also has students smaller than the teacher, which it
prepares by matching the teacher's score; here a smaller one begins at random.

Paper: Song et al., Multi-student Diffusion Distillation for Better One-step Generators
  (arXiv:2410.23274).
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.method import Method
from distill_jax.methods.diffusion import dmd2


def make(config) -> Method:
  copies, inner = config.models.student.copies, dmd2.make(config)

  def init(key, pretrained):
    return inner.init(key, copied(pretrained, copies))

  return Method(init, inner.step)


def copied(pretrained: dict[str, Any], copies: int) -> dict[str, Any]:
  """The loaded weights with those that a student begins as, stacked, as the student's."""
  one = pretrained.get("start", pretrained.get("teacher"))
  if one is None or "student" in pretrained:
    return pretrained
  stack = jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *jnp.shape(x))), one)
  return dict(pretrained, student=stack)
