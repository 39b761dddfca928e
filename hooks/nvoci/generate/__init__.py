"""CDI specifications of what this node has: discovery's `Found`, narrowed to a mode and put in the words of CDI.

`options` is what may be asked for, `specs` the way from there to specifications. In between, `modes` and `tegra` say
what each device gets, `hooks` which hooks do it, `edits` and `simplify` what that is in CDI; `freshness` lets a
specification tell what it was made for. `transform` makes one for another driver root.
"""
