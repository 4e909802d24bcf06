"""Measures: one file each, from the rows of an evaluation to named figures with n, interval, floor and ceiling."""
