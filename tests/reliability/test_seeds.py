"""What fuzzing found (`fuzz_readers.py`), as small tests."""

import json

import pytest

from xcite.training.run_folder import RunFolder


@pytest.mark.parametrize("known", ['{"sessions": 1}', "[]", "1", '{"sessions": [1]}', "{}"])
def test_an_environment_of_other_json_is_written_anew(tmp_path, known):
    run = RunFolder(tmp_path)
    run.environment.write_text(known)
    run.write_environment("torch")
    (session,) = json.loads(run.environment.read_text())["sessions"]
    assert session["engine"] == "torch"
