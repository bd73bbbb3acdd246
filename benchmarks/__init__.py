"""What this project's speed is, beside its peers: `python -m benchmarks --help`."""
