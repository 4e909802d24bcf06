"""Where domains come from: procedural worlds and the user's own rows."""
