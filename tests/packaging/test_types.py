"""`py.typed` is true: mypy --strict accepts a program that uses Xcite, and finds its mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xcite.engines import installed

HERE = Path(__file__).parent


@pytest.mark.skipif(set(installed()) != {"paddle", "torch"}, reason="the types are both engines'")
def test_a_typed_program(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    # The frameworks' own files are left out, which takes a minute less. Those of Xcite are read as
    # those of an installed package: their types count, their faults are not the user's.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\n"
        "[mypy-torch.*,paddle.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini"]
        + [str(HERE / name) for name in ("typed_use.py", "misused.py")],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(HERE.parents[1] / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"(\w+\.py):(\d+): error", done.stdout)
    lines = (HERE / "misused.py").read_text().splitlines()
    mistakes = [str(k) for k, line in enumerate(lines, 1) if line.startswith("xcite.")]
    assert errors == [("misused.py", line) for line in mistakes], done.stdout + done.stderr
