"""The ledger of a node: what a crash cannot take away, written and read back."""
