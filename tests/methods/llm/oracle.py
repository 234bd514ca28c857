"""A method on small random models and a batch, and what numpy says of those models."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.models import student as student_lib

PLAIN = ("optim.schedule=constant", "optim.name=sgd", "optim.lr=1.0", "optim.clip_norm=0.0")
VOCABULARY = 257  # of the byte tokenizer; the heads are padded to 264


class Setup(NamedTuple):
  config: Any
  method: Any
  step: Any
  state: Any
  frozen: Any
  batch: Any
  programs: dict  # name -> tokens to logits, compiled once

  def log_probs(self, name, params, tokens):
    """log softmax of the logits after each token: float64 [B, T, 257]."""
    if name not in self.programs:
      model = student_lib.model(self.config, name)
      self.programs[name] = jax.jit(lambda p, t: model.logits(p, model.hidden(p, t)))
    logits = np.asarray(self.programs[name](params, tokens), np.float64)
    assert np.all(np.isneginf(logits[..., VOCABULARY:]))
    logits = logits[..., :VOCABULARY]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  def pair(self, tokens):
    """log q and log p at the inputs of `tokens`, of the state's student and the teacher."""
    inputs = tokens[:, :-1]
    student = self.log_probs("student", self.state["student"], inputs)
    return student, self.log_probs("teacher", self.frozen["teacher"], inputs)

  def greedy(self, name, params, prompts, new):
    """The prompts continued by their likeliest tokens, one whole forward pass for each."""
    tokens = np.pad(np.asarray(prompts), ((0, 0), (0, new)))
    for at in range(prompts.shape[1], tokens.shape[1]):
      tokens[:, at] = self.log_probs(name, params, tokens)[:, at - 1].argmax(-1)
    return tokens


def setup(experiment, *overrides, scale=8.0) -> Setup:
  """Weights are `scale` times those of the start, so that distributions are far from uniform."""
  config = config_lib.load(f"experiments/llm/{experiment}.py:smoke", (*PLAIN, *overrides))
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = jax.jit(method.init)(jax.random.key(0), {})
  enlarge = functools.partial(jax.tree.map, lambda x: x * scale if x.ndim > 1 else x)
  state, frozen = dict(state, student=enlarge(state["student"])), enlarge(frozen)
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  mask = jax.random.bernoulli(jax.random.key(2), 0.7, (8, 16))
  batch = dict(tokens=tokens, mask=mask)
  return Setup(config, method, jax.jit(method.step), state, frozen, batch, {})


def nll(log_q, tokens):
  """-log q of each target [B, T]."""
  return -np.take_along_axis(log_q, np.asarray(tokens)[:, 1:, None], -1)[..., 0]


def mean(values, mask):
  mask = np.asarray(mask)
  return (values * mask).sum() / mask.sum()


def kl(log_a, log_b):
  return (np.exp(log_a) * (log_a - log_b)).sum(-1)


def loss_of(metrics):
  total, count = metrics["loss"]
  return float(total) / float(count)
