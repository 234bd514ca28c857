"""What a distilled set without classes teaches: a network is trained on it by `config.protocol`, to
regress its labels, then its features are frozen and a linear layer on them is fitted to the real
training labels in closed form.

  accuracy                  on test images, one value for each seed: accuracy@SEED
  accuracy_few              the same with the labels of `FEW` training images of each class alone
  accuracy_random_features, accuracy_few_random_features
                            the same of a network before any training
"""

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.distilled import protocol as protocol_lib
from distill_jax.distilled import synthetic
from distill_jax.methods.dataset import krr_st

RIDGE = 1e-5  # of the mean diagonal of the features' second moments
FEW = 5


def make(config):
  data = method_lib.load("data", config.data.name)
  x, label = data.held_out(config, "test")
  classes = config.models.student.num_classes
  model = method_lib.load("models", config.models.student.name)

  @jax.jit
  def judged(student, real, x, label, key):
    given = krr_st.with_outputs(config, student["labels"].shape[1])
    of_weights, of_training = jax.random.split(key)

    def accuracies(params):
      with_one = lambda f: jnp.concatenate([f, jnp.ones_like(f[:, :1])], axis=1)  # noqa: E731
      train, test = (with_one(krr_st.features(given, params, x)) for x in (real.x, x))
      targets = synthetic.regression_targets(real.label, classes)
      few = (real.first[:, None] + jnp.arange(FEW)).reshape(-1)  # rows are ordered by class
      weights = linear_probe(train, targets), linear_probe(train[few], targets[few])
      return [jnp.mean(jnp.argmax(test @ w, axis=1) == label) for w in weights]

    trained = protocol_lib.train(
      config.protocol, given, student["images"], student["labels"], of_training, kind="regression"
    )
    random = model.init(given, x.shape[1:], of_weights)
    names = ("accuracy", "accuracy_few")
    return {
      f"{name}{suffix}": value
      for suffix, params in (("", trained), ("_random_features", random))
      for name, value in zip(names, accuracies(params), strict=True)
    }

  def evaluate(state, frozen):
    keys = jax.random.split(jax.random.key(config.seed + 1), config.protocol.seeds)
    each = [judged(state["student"], frozen["real"], x, label, key) for key in keys]
    return {f"{name}@{i}": float(v) for i, values in enumerate(each) for name, v in values.items()}

  return evaluate


def linear_probe(features: jax.Array, targets: jax.Array) -> jax.Array:
  """The weights [D, C] of ridge regression from features [N, D] to targets [N, C]."""
  moments = jnp.matmul(features.T, features, precision="highest")
  ridge = RIDGE * jnp.trace(moments) / len(moments)
  return jnp.linalg.solve(moments + ridge * jnp.eye(len(moments)), features.T @ targets)
