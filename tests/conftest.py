"""Its place puts ``tests/`` on the import path, so that tests of all folders can import ``kit``."""
