"""What the driver and the controller are made of: they start fast, and need none of what models are computed with."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["controller.launcher", "controller.actor"])
def test_driver_and_controller_import_no_torch(root, module):
    """With torch and transformers each took five seconds more to be there."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'vllm', 'deepspeed') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
