"""What a competent user would set up instead: each system is started by a context manager of ``systems``."""
