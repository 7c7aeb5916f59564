"""What of a Ray cluster a run asks and uses: whether it answers, who has room, a meter on each node."""
