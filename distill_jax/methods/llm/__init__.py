"""Language-model distillation."""
