"""Schedules of training: their ends, their exactness and that the step may be traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import discretization as d


def test_scales_of_consistency_training_go_from_start_to_end():
  of_step = jax.jit(lambda k: d.cm_scales(k, steps=1000, start=2, end=150))
  scales = jax.vmap(of_step)(jnp.arange(1001))
  assert scales[0] == 2 and scales[1000] == 151 and jnp.all(jnp.diff(scales) >= 0)
  ema = d.cm_target_ema(scales, start=2, start_ema=0.9)
  np.testing.assert_allclose(ema[0], 0.81, rtol=1e-6)
  np.testing.assert_allclose(ema[-1], 0.9 ** (2 / 150), rtol=1e-6)


def test_progressive_scales_halve_and_stay_twice_as_long_at_the_end():
  of_step = jax.jit(lambda k: d.progressive_scales(k, steps_per_stage=10, start=16))
  scales = jax.vmap(of_step)(jnp.arange(100)).tolist()
  assert scales == [16] * 10 + [8] * 10 + [4] * 10 + [2] * 20 + [1] * 50
  assert d.progressive_scales(10**9, steps_per_stage=10, start=4096) == 1


def test_scales_of_ict_double():
  of_step = jax.jit(lambda k: d.ict_scales(k, steps=800))
  scales = jax.vmap(of_step)(jnp.arange(800))
  assert jnp.all(jnp.diff(scales) >= 0)
  assert np.unique(scales).tolist() == [11, 21, 41, 81, 161, 321, 641, 1281]
  assert d.ict_scales(10**9, steps=800) == 1281


def test_weights_by_noise_level():
  sigma = jnp.array([0.1, 10.0])
  for name, want in {
    "uniform": [1, 1],
    "snr": [100, 0.01],
    "snr_plus_one": [101, 1.01],
    "karras": [104, 4.01],
    "truncated_snr": [100, 1],
  }.items():
    np.testing.assert_allclose(d.cm_weight(sigma, name), want, rtol=1e-5)
  with pytest.raises(ValueError, match=r"'edm'.*karras"):
    d.cm_weight(sigma, "edm")


def test_levels_of_a_traced_number_have_the_same_probabilities():
  fixed = d.ascending_sigmas(11, 11)
  np.testing.assert_allclose(fixed[jnp.array([0, -1])], [0.002, 80], rtol=1e-4)
  padded = jax.jit(lambda n: d.ascending_sigmas(n, 41))(11)
  np.testing.assert_allclose(padded[:11], fixed, rtol=1e-5)
  p = d.ict_probabilities(padded)
  np.testing.assert_array_equal(p[10:], 0)
  np.testing.assert_allclose(p[:10], d.ict_probabilities(fixed), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n", [2, 161])
def test_probabilities_are_the_mass_of_the_log_normal(n):
  with jax.enable_x64(True):
    sigmas = d.ascending_sigmas(n, n)
    p = d.ict_probabilities(sigmas)
    np.testing.assert_allclose(jnp.sum(p), 1, rtol=1e-12)
    assert jnp.all(p > 0)
    np.testing.assert_allclose(d.ict_weights(sigmas) * jnp.diff(sigmas), 1)
    if n > 2:  # the density of log sigma at the middle of the intervals
      log = jnp.log(sigmas)
      middle, width = (log[1:] + log[:-1]) / 2, jnp.diff(log)
      density = jnp.exp(-((middle + 1.1) ** 2) / 8) * width
      np.testing.assert_allclose(p, density / density.sum(), rtol=5e-3)


def test_pairs_of_ect_close_in_on_each_other():
  t = jnp.array([0.002, 0.5, 80.0])
  first = d.ect_r(t, d.ect_gap(0))
  assert jnp.all(first[:2] == 0) and 0 < first[2] < 40.1
  ratios = jnp.stack([d.ect_r(t, d.ect_gap(stage)) / t for stage in range(12)])
  assert jnp.all(jnp.diff(ratios, axis=0) >= 0) and jnp.all(ratios[-1] > 0.99)
  constant = d.ect_r(t, d.ect_gap(3), k=0.0)
  np.testing.assert_allclose(constant, t * (1 - 1 / 16), rtol=1e-6)
  np.testing.assert_allclose(d.ect_r(t, 1.0, minimum=0.002), 0.002)
  np.testing.assert_allclose(d.ect_gap(jnp.array([0, 50]), q=256.0, smallest=1e-3), [1 / 256, 1e-3])


def test_stages_of_ect_are_exact_at_their_borders():
  of_step = jax.jit(lambda k: d.ect_stage(k, batch=512, kimg=12_500))
  steps = np.array([0, 24_414, 24_415, 48_828, 48_829, 2_000_000])
  got = jax.vmap(of_step)(steps)
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got, steps * 512 // 12_500_000)


def test_tangent_warmup():
  np.testing.assert_allclose(d.tangent_warmup(jnp.array([0, 5, 10, 99]), 10), [0, 0.5, 1, 1])
  assert d.tangent_warmup(0, 0) == 1


@pytest.mark.parametrize(
  ("count", "levels", "want"),
  [(8, 3, [2, 2, 1, 1, 0, 0, 0, 0]), (2, 3, [0, 0]), (3, 3, [2, 1, 0])],
)
def test_levels_of_shortcuts(count, levels, want):
  assert d.shortcut_levels(count, levels).tolist() == want


def test_biased_levels_of_shortcuts():
  assert d.shortcut_levels_biased(16, 4).tolist() == [3, 3, 2, 2] + [1] * 4 + [0] * 8


def test_u_shaped_times_have_their_density():
  with jax.enable_x64(True):
    t, w = np.polynomial.legendre.leggauss(40)
    total = (w / 2 * d.u_shaped_density(jnp.asarray((t + 1) / 2))).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-12)
  draws = d.u_shaped_times(jax.random.key(0), 40_000)
  assert draws.min() >= 1e-5 and draws.max() <= 1 - 1e-5
  counts, edges = np.histogram(draws, bins=10, range=(0, 1))
  middle = d.u_shaped_density(jnp.asarray((edges[1:] + edges[:-1]) / 2))
  np.testing.assert_allclose(counts / 4000, middle, rtol=0.1)
  np.testing.assert_allclose(d.u_shaped_density(jnp.array([0.3]), a=1e-6), 1, rtol=1e-4)


def test_the_grid_of_lcm():
  assert d.ddim_timesteps(4).tolist() == [249, 499, 749, 999]
  assert d.previous_timesteps(4).tolist() == [0, 249, 499, 749]
  alphas = jnp.linspace(1, 0, 1000)
  now, clean = d.ddim_grid(alphas, 4)
  np.testing.assert_array_equal(now[:-1], clean[1:])
  assert clean[0] == 1


def test_phases():
  edges = d.phase_edges(10, 3)
  assert edges.tolist() == [0, 3, 6]
  got = jax.jit(d.phase_edge)(jnp.arange(10), edges)
  assert got.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 6]
