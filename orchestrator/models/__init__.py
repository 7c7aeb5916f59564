"""Trained models as folders: imported, exported, and texts drawn from them."""
