"""Ego clips: the schema of one clip, sharded stores of them, and where they come from."""
