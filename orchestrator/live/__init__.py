"""What a run is doing now, in small files that are replaced while it trains."""
