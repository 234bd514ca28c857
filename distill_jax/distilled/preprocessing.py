"""What is done to images before a network sees them, stored beside a distilled set with its
inverse: images that are read with another preprocessing are noise.

  none         as they are, in [-1, 1]
  standardize  (x - mean) / std of each channel
  zca          standardize, then whiten: U (S + epsilon)^-1/2 U^T of the pixels' covariance
"""

import numpy as np

from distill_jax.config import ConfigError

KINDS = ("none", "standardize", "zca")
Arrays = dict[str, np.ndarray]


def fit(kind: str, x: np.ndarray, *, epsilon: float = 0.1) -> Arrays:
  """The arrays of a preprocessing, from training images.

  Args:
    kind: one of KINDS.
    x: [N, H, W, C].
    epsilon: of zca, in units of the standardized pixels' variance; 0.1 as kornia's and the authors
      of trajectory matching have it.

  Returns:
    mean [C] and std [C]; for zca also center [D], whiten [D, D] and color [D, D], its inverse.
  """
  if kind not in KINDS:
    raise ConfigError(f"data.preprocess: no {kind!r}: {', '.join(KINDS)}.")
  if kind == "none":
    return {}
  mean = x.mean(axis=(0, 1, 2), dtype=np.float64)
  std = x.std(axis=(0, 1, 2), dtype=np.float64)
  arrays = dict(mean=mean.astype(np.float32), std=np.maximum(std, 1e-8).astype(np.float32))
  if kind == "standardize":
    return arrays
  flat = ((x - arrays["mean"]) / arrays["std"]).reshape(len(x), -1).astype(np.float64)
  center = flat.mean(axis=0)
  values, vectors = np.linalg.eigh((flat - center).T @ (flat - center) / len(flat))
  root = np.sqrt(np.maximum(values, 0) + epsilon)
  whiten, color = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
  zca = dict(center=center, whiten=whiten, color=color)
  return dict(arrays, **{name: value.astype(np.float32) for name, value in zca.items()})


def apply(arrays: Arrays, x: np.ndarray) -> np.ndarray:
  """Images [N, H, W, C] in [-1, 1] as a network sees them, float32."""
  if not arrays:
    return x
  x = (x - arrays["mean"]) / arrays["std"]
  if "whiten" in arrays:
    x = ((x.reshape(len(x), -1) - arrays["center"]) @ arrays["whiten"]).reshape(x.shape)
  return x.astype(np.float32)


def invert(arrays: Arrays, x: np.ndarray) -> np.ndarray:
  """Images as a person sees them: in [-1, 1] if they were real."""
  if not arrays:
    return x
  if "whiten" in arrays:
    x = (x.reshape(len(x), -1) @ arrays["color"] + arrays["center"]).reshape(x.shape)
  return (x * arrays["std"] + arrays["mean"]).astype(np.float32)
