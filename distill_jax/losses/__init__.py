"""Pure loss functions: arrays in, arrays out, nothing imported but jax.

Functions on distributions take `[..., V]` logits and return `[...]`, one number per position, never
reduced over the batch. `where` says which positions count; the others return 0 and pass no
gradient. Numbers are in nats. Arithmetic is in float32, or in float64 for float64 inputs.
`reduce.py` turns the per-position numbers into (sum, count) pairs or means.
"""
