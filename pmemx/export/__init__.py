"""How experts leave the house; one file a target."""
