"""LLM judges: prompts, a client for chat services, and models that vLLM serves in the cluster."""
