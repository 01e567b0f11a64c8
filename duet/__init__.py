"""The command line: one module per command, with its options and what it prints."""
