"""The procedural world: lexicons, phrasings and the texts made of them."""
