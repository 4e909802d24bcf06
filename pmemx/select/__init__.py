"""Selections: scores to routing."""
