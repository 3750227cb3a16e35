"""OpenAI-compatible server around the `lookm` engine."""
