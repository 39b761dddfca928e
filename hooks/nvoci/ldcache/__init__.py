"""ld.so.cache and ld.so.conf of a container: read, computed as ldconfig does it, and written, without ldconfig."""
