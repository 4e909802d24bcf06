"""Blocks between banks: copies with their history, the Hugging Face Hub, and subscriptions."""
