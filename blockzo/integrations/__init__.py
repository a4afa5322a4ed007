"""Where people already work: Hugging Face's Trainer and TRL (`transformers`), adapters of PEFT (`peft`), vLLM's workers (`vllm`).

Each module is for the package it is named after, and nothing here is imported by the rest of blockzo.
"""
