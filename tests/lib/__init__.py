"""What tests are made of: images, drivers, containers, hostile processes and witnesses.

Import a module (`from lib import rootfs, runtimes`), not names: the modules are small and their names short.
Nothing here imports nvoci; the hook is always another process.
"""
