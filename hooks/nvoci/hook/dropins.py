"""Our files in /etc/ld.so.conf.d: one fixed name per purpose, so that a second run replaces what the first one wrote.

The names are sorted as ldconfig includes them: compatibility libraries before the driver's, the system's paths last.
"""

from __future__ import annotations

FOLDER = b"etc/ld.so.conf.d/"
COMPAT = b"00-compat-nvoci.conf"
FOLDERS = b"00-nvcr-nvoci.conf"
SYSTEM = b"zz-nvcr-nvoci.conf"
