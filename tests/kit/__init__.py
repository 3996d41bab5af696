"""Real objects for tests, built by small factories."""
