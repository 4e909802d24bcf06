"""Transforms: a bank of experts to another bank of them."""
