"""Headlines as they come: polled, scored, kept, shown, and later held against what prices did."""
