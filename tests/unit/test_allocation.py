"""Freed memory is kept for the next tensor."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from xcite.engines.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
bytearray(2**23); bytearray(2**24)  # 8 and 16 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(2**23), bytearray(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_used_before_needs_no_page_faults() -> None:
    def faults(choice: str, environment: dict[str, str]) -> int:
        command = [sys.executable, "-c", SCRIPT, choice]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    kept = faults("keep", {})
    # 20 turns of 24 MiB in pages of 4 KiB are 122 880 faults where each is fresh.
    assert kept < 20_000
    # The environment's own choice stays: everything is mapped anew.
    assert faults("keep", {"MALLOC_MMAP_THRESHOLD_": "65536"}) > 100_000
