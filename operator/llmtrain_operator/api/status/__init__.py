"""The status of an `LLMTrainJob`, a module per concern; `job` has the whole."""
