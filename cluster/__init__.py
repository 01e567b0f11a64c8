"""Fault-tolerant pools of Ray actors: placement, task queues, heartbeats, post-mortems. Knows nothing of speech."""

import os

# Without this, a Ray call in a process that left its cluster starts another cluster, open to the network. Ray reads it
# on import.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
