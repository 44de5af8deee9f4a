"""Measurements: scripts with seeds, hardware and committed results, run as `python -m benchmarks.NAME`."""
