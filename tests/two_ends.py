"""How two processes of pytest-xdist share the tests of this suite (`--dist loadgroup`)."""

import pytest
from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

HEAVY = ("e2e", "families", "operate")
"""Markers of tests that start Ray, vLLM, DeepSpeed, Prometheus or Chromium."""


def is_heavy(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in HEAVY)


class TwoEnds(LoadGroupScheduling):
    """Gives each file to one process, because its tests share fixtures; so too files that name one xdist_group.

    The heavy files are the first in the queue. The first process takes from the front, the others from the back, so
    that two heavy tests seldom run at once: they would wait for each other's processors up to their deadlines.
    """

    def __init__(self, config: pytest.Config, log=None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        scope = super()._split_scope(nodeid)
        return scope.split("::")[0] if scope == nodeid else scope

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
