"""The embedded world's own model (`playground/`): whole words, a small codec, 2 text and 8 speech tokens in turn."""

from speech.families.base import Family, Template
from speech.grammar import Interleave
from speech.vocabulary import TokenNames

PLAYGROUND = Family(
    name="playground",
    tokens=TokenNames(
        end_reply="<|im_end|>",
        pad="<|pad|>",
        begin_speech="<|begin_of_audio|>",
        end_speech="<|end_of_audio|>",
        never_text=("<|im_start|>",),
    ),
    interleave=Interleave(chunks=((2, 8),), repeat_from=0, boundaries=True),
    follows_pattern=False,
    template=Template(
        turns={"user": ("<|im_start|>", ""), "assistant": ("<|im_start|>", "<|im_end|>")},
        speech=("<|begin_of_audio|>", "<|end_of_audio|>"),
        reply="<|im_start|>",
    ),
)
FAMILIES = (PLAYGROUND,)
