"""Exchange with transformers and peft: export of models and adapters, and ablatio's models as transformers classes."""
