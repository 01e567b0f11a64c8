"""Codecs of released models: adapters to their authors' own speech decoders and tokenizers.

Each takes a folder with the published code and weights, and imports what it needs from there when it is loaded; nothing
of it comes with Duet. docs/own-model.md says what must lie where.
"""
