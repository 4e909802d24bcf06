"""Distillation objectives: what makes an expert out of examples."""
