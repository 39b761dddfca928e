"""The legacy injector: GPUs into a container that is about to start, as its environment and config.toml ask."""
