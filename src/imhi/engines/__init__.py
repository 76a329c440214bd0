"""Engines: prompts in, completions out; one file an engine."""
