"""Whether we may do at all what a guest needs."""

import os

from vmcraft.errors import NotPrivileged


def require_root() -> None:
    """Refuse before anything is tried; raises NotPrivileged."""
    if os.geteuid() != 0:
        raise NotPrivileged("guests are booted and their roots written as root", remedy="run it as root, or with sudo")
