"""Other tools that can do the job, and how they compare: `python -m benchmarks.peers`."""
