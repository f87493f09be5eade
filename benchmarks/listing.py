"""How long a million pictures take to open, the first time and from the index in the cache.

    python benchmarks/listing.py --pictures 1000000 --kinds folder,tar,list

Files are empty and lie in a temporary folder (--place), which is removed. Each opening is measured
in a process of its own: seconds of `open_source`, and the most memory of the whole process beyond
what it had with Xcite imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

CLASSES = 1000
OPEN = """
import json, resource, sys, time
from xcite.data.sources import open_source
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.monotonic()
source = open_source(sys.argv[1])
seconds, mib = time.monotonic() - started, peak() - before
started = time.monotonic()
digest = source.fingerprint()
print(json.dumps([len(source), seconds, mib, time.monotonic() - started, digest]))
"""


def names(pictures: int):
    for number in range(CLASSES):
        for picture in range(number, pictures, CLASSES):
            yield f"n{number:08}/n{number:08}_{picture:07}.JPEG"


def make(kind: str, place: Path, pictures: int) -> Path:
    folder = place / "folder"
    if kind != "tar" and not folder.exists():
        for name in names(pictures):
            path = folder / name
            try:
                os.close(os.open(path, os.O_CREAT))
            except FileNotFoundError:
                path.parent.mkdir(parents=True)
                os.close(os.open(path, os.O_CREAT))
    if kind == "list":
        with open(place / "list.txt", "w") as file:
            file.writelines(f"folder/{name} {int(name[1:9])}\n" for name in names(pictures))
        return place / "list.txt"
    if kind == "tar":
        with open(place / "pictures.tar", "wb") as file:
            for name in names(pictures):
                file.write(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(1024))
        return place / "pictures.tar"
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--kinds", default="folder,tar,list")
    parser.add_argument("--place", help="folder to work in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(place) / "cache")}
        print(
            "| source | opened | seconds | MiB | fingerprint, seconds |\n"
            "| --- | --- | --- | --- | --- |"
        )
        for kind in options.kinds.split(","):
            path = make(kind, Path(place), options.pictures)
            time.sleep(3)  # an index of what has just changed is not kept
            digests = set()
            for when in ("first", "again", "once more"):
                command = [sys.executable, "-c", OPEN, str(path)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True)
                count, seconds, mib, hashing, digest = json.loads(done.stdout)
                digests.add(digest)
                print(f"| {kind}, {count:,} | {when} | {seconds:.2f} | {mib:.0f} | {hashing:.2f} |")
            assert len(digests) == 1


if __name__ == "__main__":
    main()
