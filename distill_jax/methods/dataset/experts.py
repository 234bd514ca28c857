"""Expert trajectories: many networks trained on the real data, their parameters kept at the end of
every epoch, for methods that match them.

  w <- w - lr grad CE(A(x), y),  trajectory[e] = w at the end of epoch e

One step is one epoch of every expert. With GSAM (`ftd`) the gradient is that of a flat
neighbourhood; with `smooth` the first epochs are slower and the network's slope in its input is
held near 1.
`config.optim` is not read: experts have a rate of their own (distilled/experts.py).

Paper: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
  Trajectories (arXiv:2203.11932), section 3.
Paper: Du, Jiang, Tan, Zhou, Li, Minimizing the Accumulated Trajectory Error to Improve Dataset
  Distillation (arXiv:2211.11004), section 3.
"""

import jax
import jax.numpy as jnp

from distill_jax.distilled import experts as experts_lib
from distill_jax.method import Method


def make(config) -> Method:
  def init(key, pretrained):
    experts = experts_lib.start(config, key)
    rows = config.steps + 1
    trajectory = jax.tree.map(
      lambda x: jnp.zeros((rows, *x.shape), x.dtype).at[0].set(x), experts["params"]
    )
    state = dict(step=jnp.int32(0), student=experts["params"], opt=experts["opt"])
    return dict(state, trajectory=trajectory), dict(real=pretrained["real"])

  def step(state, frozen, batch, key):
    t = state["step"]
    experts = dict(params=state["student"], opt=state["opt"])
    experts, loss = experts_lib.epoch(config, experts, frozen["real"], t, key)
    trajectory = jax.tree.map(
      lambda rows, x: rows.at[t + 1].set(x), state["trajectory"], experts["params"]
    )
    state = dict(step=t + 1, student=experts["params"], opt=experts["opt"], trajectory=trajectory)
    return state, dict(loss=(loss, jnp.float32(1)))

  return Method(init, step)
