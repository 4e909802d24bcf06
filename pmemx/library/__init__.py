"""A library of experts as a whole: how alike updates are, which subspaces they share, and which tasks belong together."""
