"""Turn raw records into checked, split, prepared data on disk."""
