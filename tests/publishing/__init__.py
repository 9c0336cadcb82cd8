"""Concurrent and killed applies and undos."""
