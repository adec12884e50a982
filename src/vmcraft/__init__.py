"""VMCraft boots a Linux guest from its root, drives its live systemd, and commits only the declared changes."""

from vmcraft.errors import VMCraftError
from vmcraft.facade.vmcraft import VMCraft
from vmcraft.model.outcome import Outcome

__all__ = ["Outcome", "VMCraft", "VMCraftError"]
__version__ = "0.1.0"
