"""Preflight: what each node of a cluster does before the first step, and which of them are slow."""
