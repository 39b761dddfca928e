"""OCI documents: the state on stdin, the view of config.json that hooks need, hooks.d entries."""
