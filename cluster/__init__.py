"""Shared by all pools of Ray actors: waiting with a deadline. Knows nothing of speech."""

import os

# Any question to Ray asked by a process that has left its cluster would start another one, open to the network. Read by
# Ray when it is imported.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
