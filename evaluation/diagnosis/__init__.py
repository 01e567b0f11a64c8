"""`duet diagnose`: analysis of gradients, scores and λ of a finished run. Needs neither Ray nor vLLM."""
