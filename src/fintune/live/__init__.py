"""Live headlines: polled, scored, stored, shown, and later compared with price moves."""
