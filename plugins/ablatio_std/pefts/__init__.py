"""Parameter-efficient fine-tuning: methods that train few parameters of a model, or few added ones."""
