"""The nouns of pmemx and the interfaces of its axes; depends on torch and nothing above it."""
