"""How an expert is injected into a model for training, and taken out of it again; one file a method."""
