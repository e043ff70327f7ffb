"""Read, check, split and batch the examples of every task."""
