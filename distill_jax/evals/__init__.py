"""Evaluations. Each module has `make(config) -> evaluate(state, frozen) -> {name: value}`."""
