"""The record of a run: computed, sealed, verified, added up over a project."""
