"""Structures of experts that are trained together with their gate."""
