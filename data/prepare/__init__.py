"""`duet prepare`: dialogues in words and sound files become rows of token ids, once."""
