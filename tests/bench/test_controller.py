"""What the controller costs, by ratio: it must not grow with its members or faster than its replies."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import numpy as np
import pytest

from bench.simulation import simulate
from speech.families import PLAYGROUND
from speech.grammar import Automaton, TokenKind, allowed_masks

PATTERN = PLAYGROUND.interleave
LATENCIES = dict(rollout=0.3, reward=0.1, learn=0.1, sync=0.1)


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_members_cost_the_controller_next_to_nothing():
    """The same replies from one worker, from six, and from six in two processes; processor time, which a busy machine
    leaves alone."""
    # In a process of its own: Ray numbers actors anew in each cluster, and handles of the simulation that are collected
    # later would end actors of the cluster that this process joins next.
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        simulated = apart.submit(simulate, {1: 4, 6: 4}, prompts=96, latencies=LATENCIES).result()
        shared = apart.submit(simulate, {6: 4}, 3, prompts=96, latencies=LATENCIES).result()[6]
    everything = [*simulated[1], *simulated[6], *shared]
    one, six, sharing = (median(s.processor for s in spent) for spent in (simulated[1], simulated[6], shared))
    assert all(s.replies == 96 * 4 for s in everything)
    assert six / one < 1.6
    assert 0.6 < sharing / six < 1.6
    assert all(s.wall > sum(LATENCIES.values()) for s in everything)
    assert all(0 < s.own < s.wall for s in everything)


def test_what_is_done_for_every_token_is_a_look_up():
    kinds = np.array(
        [0, TokenKind.TEXT, TokenKind.SPEECH, TokenKind.BEGIN, TokenKind.END, TokenKind.STOP], dtype=np.int8
    )
    reply = np.array([*[1, 1, 3, *[2] * 8, 4] * 30, 5])

    def stepwise() -> list[int]:
        automaton, sets = Automaton(PATTERN), []
        for token in reply:
            sets.append(int(automaton.allowed()))
            automaton.advance(TokenKind(int(kinds[token])))
        return sets

    def seconds(function) -> float:
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun

    assert allowed_masks(reply, PATTERN, kinds).tolist() == stepwise()
    pairs = [(seconds(stepwise), seconds(lambda: allowed_masks(reply, PATTERN, kinds))) for _ in range(15)]
    assert median(slow / fast for slow, fast in pairs) > 8
