"""CDI devices for a container that exists already: what `nvidia-cdi-hook inject` does.

For engines and runtimes that know no CDI. Loaded for that subcommand only; not a part of any other container start.

    main.py      prepare(), plan(); which steps the devices come to
    edits.py     from a device's edits to operations, and what cannot be done any more
    mountopts.py mount options
    sources.py   what is mounted: detached clones, made on the host
    targets.py   where it is mounted: found, or made, by handle
    mounts.py    the operations that mount
    hooks.py     the hooks of a device: ours run in this process, those of others as programs
    program.py   the operation that runs a program of the host
"""
