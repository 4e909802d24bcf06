"""pmemx bank: every verb of a governed bank for people and scripts; a verb imports what it needs when it runs."""

from pmemx.cli_bank.parser import add_bank

__all__ = ["add_bank"]
