"""nvoci: GPUs for containers. Every hook process imports this file, so it holds the version and nothing else."""

__version__ = "0.1.0"
