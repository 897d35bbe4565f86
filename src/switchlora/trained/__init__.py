"""Finished models: what a run left, or what others published, opened again."""
