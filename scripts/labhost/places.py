"""The machine's real directories that the lab shows at the same path; and where this checkout is."""

import os

from scripts.labhost.system import below, mounts

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

# What the lab's / gets itself; every other top-level directory is the machine's real one.
OWN_TOP_LEVEL = "bin boot dev etc lib lib32 lib64 libx32 lost+found proc run sbin sys usr var"
REAL_BELOW_VAR = ("/var/tmp", "/var/cache")


def real_places() -> list[str]:
    """The directories, parents before children.

    Each is bound without what is mounted below it, since that would show the lab's own root a second time. A mount of
    the machine below them follows as a place of its own, but not from /tmp and /var/tmp: what is mounted there comes
    and goes, and may be gone before nspawn binds it.
    """
    tops = [entry for entry in os.scandir("/") if entry.name not in OWN_TOP_LEVEL.split()]
    found = [entry.path for entry in tops if entry.is_dir(follow_symlinks=False)]
    found += [path for path in REAL_BELOW_VAR if os.path.isdir(path) and not os.path.islink(path)]
    if not shows_checkout(found):
        found.append(CHECKOUT)
    lasting = [place for place in found if place not in ("/tmp", "/var/tmp")]
    for each in mounts():
        is_file_system = "fuse" not in each.fstype and each.fstype not in ("overlay", "autofs")
        if is_file_system and any(below(each.point, place) for place in lasting):
            found.append(each.point)
    return sorted(set(found))


def shows_checkout(places: list[str]) -> bool:
    """Whether this checkout lies in one of the places."""
    return any(below(CHECKOUT, place) for place in places)
