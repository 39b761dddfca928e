"""The hooks: a table of subcommands, one module each, and the machine that runs their operations."""
