"""The system call layer: the only room that knows ctypes."""
