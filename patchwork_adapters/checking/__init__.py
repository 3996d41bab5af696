"""Parts of :mod:`patchwork_adapters.check`: modes to run, values to compare, leaf calls to watch, leaves in a process of their own."""
