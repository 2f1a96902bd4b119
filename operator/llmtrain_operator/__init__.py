"""The llmtrain operator: decisions about LLM training jobs, and the edges that carry them out."""

__version__ = "0.1.0"
