"""What the prepared data is like, and what leaks between its splits."""
