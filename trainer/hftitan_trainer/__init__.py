"""The in-pod trainer: a Hugging Face causal LM through torchtitan."""
