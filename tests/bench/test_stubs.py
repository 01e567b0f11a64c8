"""What a simulated member imports: hundreds of them have to fit on one machine."""

import subprocess
import sys

LIGHT = """
import sys
from bench import stubs
from reward.remote.cache import ANSWERS
from reward.types import Scorecard
from rollout.worker import RolloutResult, SyncReport
from speech.types import Reply
print([name for name in ("torch", "vllm", "transformers") if name in sys.modules])
"""


def test_what_stubs_answer_with_is_imported_without_torch(root):
    """A worker's process has some 70 MiB without, 250 with it."""
    found = subprocess.run([sys.executable, "-c", LIGHT], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
