"""Reading, checking, splitting and batching the examples of every task."""
