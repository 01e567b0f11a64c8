"""Judges that are language models: what they are asked, a chat service, and a model that vLLM serves in the cluster."""
