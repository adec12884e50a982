"""A root, an overlay over it as a guest gets it, and a shell inside the guest's user namespace: all of it real."""

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vmcraft.changes.pending import PendingChanges
from vmcraft.changes.upper import Layers
from vmcraft.host import idmap, syscalls
from vmcraft.host.root_dir import RootDir

BASE = 0x7A000000
OPTIONS = "redirect_dir=off,metacopy=off,index=off"

Manifest = dict[str, tuple[object, ...]]


@dataclass(kw_only=True)
class Overlay:
    """The directories of one test; `guest` runs a shell in the merged view as the guest's root."""

    path: str
    base: int | None
    namespace: int | None
    layers: Layers
    pending: PendingChanges = field(init=False)

    def __post_init__(self) -> None:
        self.pending = PendingChanges(self.layers)

    @property
    def source(self) -> str:
        return f"{self.path}/source"

    @property
    def merged(self) -> str:
        return f"{self.path}/merged"

    @property
    def state_dir(self) -> str:
        return f"{self.path}/state"

    def guest(self, script: str) -> None:
        """Run a shell script whose current directory is the guest's root."""
        words = ["sh", "-euc", script]
        if self.namespace is not None:
            enter = ["nsenter", f"--user=/proc/self/fd/{self.namespace}", "--setuid", "0", "--setgid", "0"]
            words = [*enter, *words]
        pass_fds = [] if self.namespace is None else [self.namespace]
        subprocess.run(words, cwd=self.merged, pass_fds=pass_fds, check=True)

    def declare(self, *paths: str, call: str = "test", args: Sequence[str] = ()) -> None:
        self.pending.declare(paths, call=call, args=args)


@contextlib.contextmanager
def working_directory() -> Iterator[str]:
    """A directory on the disk's file system, not on tmpfs; gone at the end."""
    path = tempfile.mkdtemp(prefix="vmcraft-test-", dir="/var/tmp")
    try:
        yield path
    finally:
        # Not rmtree: some roots here nest deeper than Python recurses.
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


@contextlib.contextmanager
def memory_directory() -> Iterator[str]:
    """A directory on a tmpfs of its own: hundreds of commits that do not wait for the disk's other users."""
    with working_directory() as path:
        syscalls.mount(b"vmcraft", path.encode(), b"tmpfs", 0, b"mode=0755")
        try:
            yield path
        finally:
            syscalls.unmount(path.encode())


@contextlib.contextmanager
def overlay(build: str, *, base: int | None = BASE) -> Iterator[Overlay]:
    """Build a source with a shell script, and mount an overlay over it."""
    with working_directory() as path, contextlib.ExitStack() as stack:
        for name in ("source", "lower", "upper", "work", "merged"):
            os.mkdir(f"{path}/{name}")
        subprocess.run(["sh", "-euc", build], cwd=f"{path}/source", check=True)
        namespace = None
        if base is None:
            syscalls.mount(f"{path}/source".encode(), f"{path}/lower".encode(), b"", syscalls.MS_BIND, b"")
        else:
            os.chown(f"{path}/upper", base, base)
            tree = idmap.mapped(f"{path}/source", inside=0, outside=base)
            syscalls.move_mount(tree, f"{path}/lower".encode())
            os.close(tree)
            namespace = syscalls.mapped_user_namespace(0, base)
            stack.callback(os.close, namespace)
        stack.callback(syscalls.unmount, f"{path}/lower".encode())
        options = f"lowerdir={path}/lower,upperdir={path}/upper,workdir={path}/work,{OPTIONS}"
        syscalls.mount(b"vmcraft", f"{path}/merged".encode(), b"overlay", 0, options.encode())
        stack.callback(syscalls.unmount, f"{path}/merged".encode())
        lower = stack.enter_context(RootDir.open(f"{path}/source"))
        upper_fd = (
            os.open(f"{path}/upper", os.O_RDONLY) if base is None else idmap.reverse_mapped(f"{path}/upper", base)
        )
        upper = stack.enter_context(RootDir.from_fd(upper_fd))
        yield Overlay(path=path, base=base, namespace=namespace, layers=Layers(lower, upper))


def manifest(root: str) -> Manifest:
    """Everything below a root, byte for byte; of directories all but the times and sizes."""
    # By find, since os.walk recurses.
    paths = subprocess.run(["find", root, "-mindepth", "1", "-print0"], capture_output=True, check=True).stdout
    names = [os.fsdecode(path) for path in paths.split(b"\0") if path]
    return {"/": _line(root)} | {path.removeprefix(root): _line(path) for path in names}


def _line(path: str) -> tuple[object, ...]:
    status = os.lstat(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    content: object = None
    mtime_ns = status.st_mtime_ns
    if os.path.islink(path):
        content = os.readlink(path)
    elif os.path.isfile(path):
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    else:
        mtime_ns = 0
    return oct(status.st_mode), status.st_uid, status.st_gid, content, mtime_ns, tuple(sorted(xattrs.items()))


def changed(before: Manifest, after: Manifest) -> set[str]:
    """The paths in which two manifests differ."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
