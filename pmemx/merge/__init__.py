"""Merges: blocks to one block, by sums, elections and random drops over deltas, factors or aligned spaces."""
