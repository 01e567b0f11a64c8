"""Weight updates from the learner to every engine: sources, senders, receivers."""
