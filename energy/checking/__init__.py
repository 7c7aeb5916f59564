"""Whether a footprint, anybody's, can be true; published ones computed again."""
