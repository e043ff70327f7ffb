"""fintune: one causal LLM, one LoRA adapter, five finance tasks.

Importing this package imports nothing heavy; torch and transformers load only where they are used.
"""

__version__ = "0.1.0"
