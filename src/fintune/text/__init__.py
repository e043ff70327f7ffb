"""Operations on strings alone: sentences, numbers, near duplicates, encodings; no tasks or models."""
