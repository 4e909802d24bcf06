"""The web page of a bank: what it holds, where that comes from, and who did what to it; read-only unless asked."""
