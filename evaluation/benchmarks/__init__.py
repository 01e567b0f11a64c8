"""Published suites of spoken questions: their readers, their scoring, and a model that is asked them."""
