"""The task: spoken arithmetic asked in one of four manners. Facts, questions, answers and splits; pure, no audio.

A caller asks "three plus five", high or low, fast or slow. The reply should be right, and in the caller's manner:

    "oh eight it is"     fast        the opening word goes with the tempo, so the wording carries the tempo,
    "well eight it is"   slow        while high or low is in the voice alone

The answer is among the first two words, hence in text before any speech: what is said is decided there.

Three splits, by **rendering** (caller × manner × rate × pitch of one fact) and by **fact** ("three plus five"):

    base, train       facts known, 9 of the 12 (caller, manner) pairs of each fact
    held_out          the same facts, the 3 pairs of each fact that base and train never use
    held_out_facts    facts never trained on, the other order of their operands included

Answers leave out four, five and six, which the recogniser confuses even in the original audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from playground.voices import CALLERS, MANNERS, Manner

# fmt: off
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on
OPERATIONS = ("plus", "minus", "bigger", "smaller")
ANSWERS: tuple[str, ...] = tuple(word for word in NUMBERS[:19] if word not in ("four", "five", "six"))
OPENERS = {"fast": "oh", "slow": "well"}
CARRIER = ("it", "is")
WORDS: tuple[str, ...] = (*OPENERS.values(), *CARRIER, *ANSWERS)
"""Every word a reply may hold."""
ANSWER_RIGHT = 0.4
"""Share of right answers in the training source; the others are uniform over the wrong ones."""
AXIS_RIGHT = 0.65
"""Share of replies in the training source with the caller's pitch; of those with the caller's tempo, independently."""
FACTS_HELD_OUT = 0.12
PAIRS_HELD_OUT = 3
"""(caller, manner) pairs of each known fact that are kept for held_out, of len(CALLERS) · 4."""


@dataclass(frozen=True, order=True)
class Fact:
    """One question: an operation on two digits."""

    operation: str
    left: int
    right: int

    @property
    def text(self) -> str:
        """The question in words."""
        left, right = NUMBERS[self.left], NUMBERS[self.right]
        if self.operation in ("bigger", "smaller"):
            return f"{self.operation} {left} or {right}"
        return f"{left} {self.operation} {right}"

    @property
    def answer(self) -> str:
        """The right answer, one word."""
        a, b = self.left, self.right
        return NUMBERS[{"plus": a + b, "minus": a - b, "bigger": max(a, b), "smaller": min(a, b)}[self.operation]]

    @property
    def twin(self) -> Fact:
        """The fact with the same answer and the operands in the other order; itself for differences."""
        return self if self.operation == "minus" else Fact(self.operation, self.right, self.left)


@dataclass(frozen=True)
class Rendering:
    """One way of asking a fact."""

    fact: Fact
    caller: str
    """A voice as espeak-ng names it."""
    manner: Manner
    rate: int
    """Words a minute."""
    pitch: int
    """espeak-ng's 0..99 scale."""


@dataclass(frozen=True)
class DialogueLine:
    """What a reply says and how."""

    text: str
    manner: Manner


@dataclass(frozen=True)
class Splits:
    """Renderings of each split, shuffled."""

    base: list[Rendering]
    train: list[Rendering]
    held_out: list[Rendering]
    held_out_facts: list[Rendering]


def all_facts() -> list[Fact]:
    """Every fact with digits 1..9 whose answer is in ANSWERS."""

    def possible() -> Iterator[Fact]:
        for operation in OPERATIONS:
            for left in range(1, 10):
                for right in range(1, 10):
                    if operation == "minus" and right > left:
                        continue
                    if operation in ("bigger", "smaller") and left == right:
                        continue
                    yield Fact(operation, left, right)

    return [fact for fact in possible() if fact.answer in ANSWERS]


def line(answer: str, manner: Manner) -> DialogueLine:
    """The reply that says `answer` in `manner`."""
    if answer not in ANSWERS:
        raise ValueError(f"{answer!r} is not an answer; answers: {' '.join(ANSWERS)}")
    return DialogueLine(" ".join((OPENERS[manner.tempo], answer, *CARRIER)), manner)


def said_answer(text: str) -> str | None:
    """The answer in a reply of exactly the form "opener answer it is"; None for any other words."""
    words = text.split()
    formed = len(words) == 4 and words[0] in OPENERS.values() and tuple(words[2:]) == CARRIER
    return words[1] if formed and words[1] in ANSWERS else None


def draw_line(fact: Fact, asked: Manner, generator: np.random.Generator) -> DialogueLine:
    """A reply from the training source, of mixed quality in content and in manner, always said as written."""
    wrong = [word for word in ANSWERS if word != fact.answer]
    answer = fact.answer if generator.random() < ANSWER_RIGHT else wrong[generator.integers(len(wrong))]
    keep_pitch, keep_tempo = generator.random(2) < AXIS_RIGHT
    pitch = asked.pitch if keep_pitch else {"high": "low", "low": "high"}[asked.pitch]
    tempo = asked.tempo if keep_tempo else {"fast": "slow", "slow": "fast"}[asked.tempo]
    return line(answer, Manner(pitch, tempo))


def split_facts(generator: np.random.Generator) -> tuple[list[Fact], list[Fact]]:
    """(known, held out): a share FACTS_HELD_OUT of each operation is held out, together with its twins."""
    facts = all_facts()
    held: set[Fact] = set()
    for operation in OPERATIONS:
        own = [fact for fact in facts if fact.operation == operation]
        goal = round(FACTS_HELD_OUT * len(own))
        chosen: set[Fact] = set()
        for index in generator.permutation(len(own)):
            if len(chosen) >= goal:
                break
            chosen |= {own[index], own[index].twin}
        held |= chosen
    return [fact for fact in facts if fact not in held], sorted(held)


def render(
    fact: Fact, pairs: Sequence[tuple[str, Manner]], generator: np.random.Generator, used: set[Rendering]
) -> Rendering:
    """A rendering of `fact` by one of `pairs` that is not in `used` yet; adds it there."""
    for _ in range(1000):
        caller, manner = pairs[int(generator.integers(len(pairs)))]
        rate, pitch = manner.draw(generator)
        rendering = Rendering(fact, caller, manner, rate, pitch)
        if rendering not in used:
            used.add(rendering)
            return rendering
    raise ValueError(f"renderings of {fact.text!r} by {len(pairs)} pairs are used up")


def make_splits(seed: int, *, base: int, train: int, held_out: int, held_out_facts: int) -> Splits:
    """Splits with these numbers of renderings, facts in turn, shuffled. Same seed, same splits."""
    generator = np.random.default_rng(seed)
    known, unknown = split_facts(generator)
    pairs = [(caller, manner) for caller in CALLERS for manner in MANNERS]
    shuffled = {fact: [pairs[i] for i in generator.permutation(len(pairs))] for fact in known}
    kept_out = {fact: order[:PAIRS_HELD_OUT] for fact, order in shuffled.items()}
    trained = {fact: order[PAIRS_HELD_OUT:] for fact, order in shuffled.items()}
    used: set[Rendering] = set()

    def rows(count: int, facts: list[Fact], allowed: dict[Fact, list[tuple[str, Manner]]]) -> list[Rendering]:
        made = [render(facts[i % len(facts)], allowed[facts[i % len(facts)]], generator, used) for i in range(count)]
        return [made[i] for i in generator.permutation(count)]

    return Splits(
        base=rows(base, known, trained),
        train=rows(train, known, trained),
        held_out=rows(held_out, known, kept_out),
        held_out_facts=rows(held_out_facts, unknown, dict.fromkeys(unknown, pairs)),
    )


def prompt_facts(rendering: Rendering) -> dict[str, str]:
    """What raters, people and a second rendering need to know of a prompt."""
    return {
        "answer": rendering.fact.answer,
        "manner": rendering.manner.name,
        "operation": rendering.fact.operation,
        "left": str(rendering.fact.left),
        "right": str(rendering.fact.right),
        "caller": rendering.caller,
        "rate": str(rendering.rate),
        "pitch": str(rendering.pitch),
    }
