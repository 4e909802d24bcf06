"""Whole runs: opening what a finished one made."""
