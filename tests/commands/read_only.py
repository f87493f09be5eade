"""A system on which nothing can be written, for another user than root: what root can make of it.

A program in it gets a mount and a network namespace of its own; outside nothing changes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

USER = 10001
UNSHARED = ["unshare", "--mount", "--net", "sh", "-ec"]
# Another user must reach the interpreter, which may lie in a home folder.
BASE = sys.base_prefix
HOME = str(Path.home())
REACHABLE = (
    f"mount --bind {BASE} /mnt && mount -t tmpfs -o mode=755 tmpfs {HOME} && mkdir -p {BASE} && "
    f"mount --bind /mnt {BASE} && umount /mnt"
    if BASE.startswith(f"{HOME}/")
    else "true"
)
READ_ONLY = f"mount --make-rprivate / && {REACHABLE} && mount -o remount,bind,ro /"
SHARED = "mount -t tmpfs tmpfs /dev/shm"  # as Docker does, also with --read-only
AS_USER = f'exec setpriv --reuid={USER} --regid={USER} --clear-groups -- "$@"'


def can_be_made() -> bool:
    """Whether this user may mount; root in a container often may not."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("setpriv"):
        return False
    tried = subprocess.run(
        [*UNSHARED, READ_ONLY], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return tried.returncode == 0


def writable(folder: Path) -> str:
    """A mount that keeps ``folder`` from becoming read-only with the rest."""
    return f"mount --bind {folder} {folder}"
