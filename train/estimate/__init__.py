"""Memory, FLOPs and throughput of a training step, known before it runs or from its shapes."""
