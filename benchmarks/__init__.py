"""What Penstock costs, measured: `python -m benchmarks`."""
