"""Stages: the steps of a run, strung together by a plan."""
