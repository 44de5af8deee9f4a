"""What we import writes no device id and reports to nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["feedback.predictor", "training.export", "hardloop.service.wiring"])
def test_onnx_runtime_starts_without_telemetry(tmp_path: Path, module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    script = f"import os, {module}; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    subprocess.run([sys.executable, "-c", script], env={**environment, "TMPDIR": str(tmp_path)}, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == [], "the runtime's session file is a sign of its telemetry"
