"""`nvoci`, the command for people: the only room with click and structlog. Nothing imports it."""
