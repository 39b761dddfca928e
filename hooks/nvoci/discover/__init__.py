"""What the node has: GPUs and MIG devices, device nodes, driver files, sockets; and the inventory that remembers it."""
