"""Gates: scores for the experts of a bank, given what the model reads."""
