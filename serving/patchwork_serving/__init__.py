"""Everything that touches the world: CLI, gateway, orchestrator, replicas, stores, models."""

__version__ = "0.1.0"
