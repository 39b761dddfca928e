"""CDI specifications of what this node has: discovery's `Found`, narrowed to a mode and put in the words of CDI.

`options` is what may be asked for, `specs` the way from there to specifications. In between, `modes` and `tegra` say
what each device gets, `hooks` which hooks do it, `edits` and `simplify` what that is in CDI. `freshness` lets a
specification tell what it was made for; `origin` reads that again, `now` is the node as it is, `stale` and `stalegpus`
say in `findings` where both differ, `arrival` whether there is a driver at all. `transform` makes a specification for
another root.
"""
