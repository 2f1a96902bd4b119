"""A real Kubernetes cluster on one Linux machine, for tests and for trying things out."""
