"""Pairs of the teacher's ODE against the exact flow."""


def test_the_pairs_are_those_of_the_flow_to_second_order(exact):
  student = exact.network(exact.consistency)
  losses = [
    exact.play("ode_pairs", (f"method.solver_steps={n}",), student=student).loss for n in (12, 24)
  ]
  assert 8 < losses[0] / losses[1] < 32  # squared errors of a second-order solver: about 16
  assert losses[1] < 1e-4
