"""Docker, KubeRay, Grafana; pre-flight checks and sizing."""
