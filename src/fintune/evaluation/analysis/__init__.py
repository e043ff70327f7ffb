"""Where a system goes wrong."""
