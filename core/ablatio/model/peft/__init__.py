"""Parameter-efficient fine-tuning (PEFT): adapters, how they are applied, merged and stored."""
