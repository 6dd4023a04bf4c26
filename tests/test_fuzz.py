"""No request that the server's own description allows makes it answer 5xx."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STREAMS = "events|ohif"
"""Answers that do not end, or are another project's files."""


def test_generated_requests_never_meet_a_server_error(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, retrain="false")
    schemathesis = Path(sys.executable).parent / "schemathesis"
    options = ["--checks", "not_a_server_error", "--max-examples", "10", "--phases", "fuzzing", "--seed", "1"]
    ended = subprocess.run(
        [schemathesis, "run", f"{server.url}/openapi.json", *options, "--exclude-path-regex", _STREAMS],
        capture_output=True,
        text=True,
        cwd=demo,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert "Traceback" not in server.log.read_text()
