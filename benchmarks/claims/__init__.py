"""The claims suite behind `blockzo bench` (docs/benchmarks.md): measured, and compared with what is committed."""
