"""Diffusion distillation."""
