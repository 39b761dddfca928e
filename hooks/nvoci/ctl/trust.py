"""Who may write what root will run or believe: root and who runs this.

In a user namespace that does not map the host's root it shows as another, who then owns `/` too.
"""

from __future__ import annotations

import os

OTHERS = 0o022
"""Mode bits of the group and of everybody."""


def owners() -> tuple[int, ...]:
    """The uids."""
    return 0, os.geteuid(), os.stat("/").st_uid


def others_can_write(status: os.stat_result) -> bool:
    """Whether somebody else can, now or after a chmod of their own."""
    return status.st_uid not in owners() or status.st_mode & OTHERS != 0
