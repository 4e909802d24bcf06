"""The frozen causal language model that experts are grown on."""
