"""Fine-tuning of few weights."""
