"""What strings say: sentences, numbers, near duplicates, encodings. Knows nothing of tasks or models."""
