"""`duet diagnose`: what a finished run shows of its gradients, its scores and λ. Without Ray and without vLLM."""
