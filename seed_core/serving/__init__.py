"""SEED-LLaMA on a server: an engine such as vLLM or SGLang computes what a network here would."""
