"""The bank on disk."""
